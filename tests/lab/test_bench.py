"""The bench itself, on models so small that their figures mean nothing."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab import bench, bench_rounds
from lab.bench_peers import PEERS
from lab.bench_rounds import AGAIN, PLAIN, Limits, Measured, Rounds, interval, take
from lab.bench_run import Bench, disc

PARTS = ["text encoder", "U-Net", "backward", "optimizer", "other", "whole"]  # of a tuning step
PARTS_OF_JSON = ("rows", "training", "tuning", "ways", "levels")
ON_CPU = SimpleNamespace(type="cpu")


@pytest.fixture
def report(host: Path, tmp_path: Path) -> Path:
    return tmp_path / "figures" / "bench.json"


def test_all_of_it_on_tiny_models(report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--device", "cpu", "--all", "--tiny", "--json", str(report)]) == 0
    figures = json.loads(report.read_text())
    assert {"device", "host", "torch", "attention", "command"} <= set(figures)
    assert figures["command"] in capsys.readouterr().out
    for model in ("tiny", "tinyxl"):
        of_model = {part: [row for row in figures[part] if row["model"] == model] for part in PARTS_OF_JSON}
        assert [row["reference"] for row in of_model["rows"]] == ["computed", "kept", *PEERS]
        for row in (*of_model["rows"], *of_model["training"], *of_model["tuning"]):
            low, high = row["interval"]
            assert 0 < low <= row["wall_ratio"] == row["ratio"] <= high
            assert min(row["cpu_ratio"], row["plain_again"], row["plain_seconds"], row["peak_mib"]) > 0
        computed, kept, *_ = of_model["rows"]
        assert kept["levels_kept"] == kept["steps"] == 1
        assert 1 < kept["floor"] < computed["floor"] < 2
        assert of_model["training"][0]["floor"] > 0
        (tuning,) = of_model["tuning"]
        assert tuning["steps"] == tuning["steps_asked"] == 2
        assert list(tuning["parts"]) == PARTS
        assert min(tuning["parts"].values()) > 0
        assert all(row["error"] is None or row["error"] < 1e-5 for row in of_model["ways"])
        assert [row["levels"] for row in of_model["levels"]] == [1, 2, 4]
        assert of_model["levels"][0]["same"]


def test_tuning_alone(report: Path) -> None:
    assert bench.main(["--device", "cpu", "--tuning", "--tiny", "--json", str(report)]) == 0
    figures = json.loads(report.read_text())
    assert [row["model"] for row in figures["tuning"]] == ["tiny", "tinyxl"]
    assert not any(figures[part] for part in PARTS_OF_JSON if part != "tuning")


def test_a_missing_gpu_is_said(host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert bench.main(["--device", "cuda", "--tiny"]) == 2
    assert "no GPU" in capsys.readouterr().out


def test_an_interrupted_run_leaves_no_file(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[dict[str, object]]:
        raise KeyboardInterrupt
        yield {}

    monkeypatch.setattr(Bench, "cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--tiny", "--json", str(report)])
    assert not report.parent.exists() or not any(report.parent.iterdir())


def test_a_disc_covers_its_part() -> None:
    assert disc(256, 0.35).mean().item() == pytest.approx(0.35, abs=0.005)


def runs(seconds: dict[str, Sequence[float]]) -> Rounds:
    """Rounds in which each run took these seconds, and half of them on the processor."""
    names = list(seconds)
    return Rounds([{n: Measured(s, s / 2, 1.0) for n, s in zip(names, each)} for each in zip(*seconds.values())])


def test_a_ratio_is_over_the_plain_runs_round_it() -> None:
    rounds = runs({PLAIN: [1.0, 3.0, 2.0], "ours": [3.0, 8.0, 3.0], AGAIN: [3.0, 5.0, 2.0]})
    assert rounds.ratio("ours").wall == rounds.ratio("ours").cpu == 1.5  # of 1.5, 2 and 1.5
    assert rounds.ratio("ours").interval == (1.5, 2.0)
    assert rounds.ratio(AGAIN).wall == 5 / 3


@pytest.mark.parametrize("count", [6, 9, 20])
def test_the_interval_holds_the_median_as_often_as_it_says(count: int) -> None:
    chance = random.Random(0)
    times, held = 4000, 0
    for _ in range(times):
        low, high = interval([chance.expovariate(1.0) for _ in range(count)])
        held += low <= 0.6931 <= high
    assert 0.94 < held / times < 0.985


def clock(speeds: Callable[[], float], monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A run whose time is what `speeds` says, by a clock that goes only then."""
    now = [0.0]
    monkeypatch.setattr(bench_rounds.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(bench_rounds.time, "process_time", lambda: now[0])
    return lambda: now.__setitem__(0, now[0] + speeds())


def test_rounds_end_when_the_interval_is_narrow(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = clock(lambda: 1.0, monkeypatch)
    rounds = take(run, {"ours": run}, Limits(), ON_CPU)
    assert len(rounds.rounds) == Limits().fewest
    assert rounds.row("ours")["narrow"]


def test_noise_takes_all_rounds_and_is_said(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    run = clock(lambda: chance.choice((1.0, 2.0)), monkeypatch)
    rounds = take(run, {"ours": run}, Limits(most=12), ON_CPU)
    assert len(rounds.rounds) == 12
    assert not rounds.row("ours")["narrow"]
