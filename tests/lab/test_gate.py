"""The proof of Score Pictures: its figures where the answer is known, and one individual from end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lab.demo import CHECKPOINT
from lab.measure import gate
from lab.measure.bench import Bench, Settings
from lab.measure.gate import PICTURES, TRUE, Proof, prove, spoilt, summary
from lab.measure.reader import Reader, questions
from lab.measure.report import _proven
from lab.measure.rows import ATTENTION
from lab.measure.studio import Sampling, Studio
from lab.measure.table import chosen
from lab.measure.teach import Confusion, Taught, title

KEPT = [0.1, 0.4, 0.2, 0.9]
GOOD = Proof("cat 2", KEPT, KEPT, [0.71, 0.74, 0.72, 0.79], [0.9, 0.8], [0.7, 0.6], [0.5, 0.4], 1.0)


def test_an_order_like_the_readers_is_all_that_is_asked() -> None:
    found = summary([GOOD] * 3)
    assert found == pytest.approx(dict.fromkeys(found, 1.0))
    assert found.keys() >= gate.ASKED.keys()


def test_the_wrong_way_round_and_no_order_at_all() -> None:
    back = replace(GOOD, likeness=[-x for x in GOOD.likeness], own=GOOD.kind, kind=GOOD.own, spoilt_last=0.0)
    found = summary([back])
    assert found["spearman"] == pytest.approx(-1)
    assert found["lift"] == pytest.approx((0.1 - 0.4) / (0.9 - 0.4))
    assert (found["own first"], found["other first"], found["spoilt last"]) == (0, 0, 0)
    alike = replace(GOOD, kept=[0.5] * 4)
    assert summary([alike])["lift"] == summary([alike])["spearman"] == 0
    assert summary([GOOD, back, alike])["spearman"] == 0  # the median


def test_spoilt_pictures_are_spoilt_each_in_its_own_way() -> None:
    picture = torch.rand(1, 64, 64, 3)
    found = spoilt(picture)
    assert {x.shape for x in found.values()} == {picture.shape}
    assert torch.equal(found["cut off"][:, :, :48], picture[:, :, 16:])
    assert not any(torch.equal(x, picture) for x in found.values())


@pytest.fixture(scope="module")
def bench(host: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """One robot, two steps, and a reader that has learnt nothing."""
    perfect: Confusion = {title(q.kind, q.name): {answer: {answer: 10} for answer in q.answers} for q in questions()}
    taught = Taught(Reader().eval(), perfect, "a test's")
    with torch.inference_mode():
        settings = Settings(1, 1, Sampling(steps=2))
        return Bench(CHECKPOINT, settings, folder=tmp_path_factory.mktemp("gate"), taught=taught)


def test_one_individual_from_end_to_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = chosen([ATTENTION], quick=False)
    with torch.inference_mode():
        told = prove(bench, row)
        monkeypatch.setattr(Studio, "draw", None)  # what is kept is not drawn again
        assert prove(bench, row) == told
    (one,) = told["individuals"]
    assert [len(one[name]) for name in ("kept", "again", "likeness", "own", "other", "kind")] == [PICTURES] * 3 + [
        TRUE
    ] * 3
    assert min(one["own"]) > max(one["kind"])  # true pictures, by the real gate
    assert one["spoilt_last"] == 1
    assert "spoilt last<td>1.00<td>1" in _proven(told)
