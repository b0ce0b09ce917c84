"""The bench itself, on a model so small that its figures mean nothing."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import bench
from lab.bench_run import Bench, disc, ratios_between


@pytest.fixture
def report(host: Path, tmp_path: Path) -> Path:
    return tmp_path / "figures" / "bench.json"


def test_tiny_run(report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--model", "tiny", "--json", str(report)]) == 0
    figures = json.loads(report.read_text())
    computed, kept = figures["rows"]
    assert (computed["reference"], kept["reference"]) == ("computed", "kept")
    for row in (computed, kept):
        assert (row["model"], row["batch"], row["foreground"]) == ("tiny", 1, 0.35)
        assert row["ratio"] > 0
        assert row["spread"] >= 0
        assert row["peak_mib"] > 0
        assert row["plain_seconds"] > 0
        assert row["levels_kept"] == row["steps"] == 1
    (training,) = figures["training"]
    assert training["model"] == "tiny"
    assert training["ratio"] > 0
    assert training["floor"] > 0
    assert 1 < kept["floor"] < computed["floor"] < 2
    assert {"device", "host", "torch", "attention", "command"} <= set(figures)
    assert figures["command"] in capsys.readouterr().out


def test_an_interrupted_run_leaves_no_file(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Iterator[dict[str, object]]:
        raise KeyboardInterrupt
        yield {}

    monkeypatch.setattr(Bench, "cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--model", "tiny", "--json", str(report)])
    assert not report.parent.exists() or not any(report.parent.iterdir())


def test_a_disc_covers_its_part() -> None:
    assert disc(256, 0.35).mean().item() == pytest.approx(0.35, abs=0.005)


def test_ratios_are_over_the_neighbouring_plain_runs() -> None:
    assert ratios_between([3.0, 6.0], [1.0, 3.0, 5.0]) == [1.5, 1.5]
