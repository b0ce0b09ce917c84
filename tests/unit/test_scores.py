"""The quality gate's figures against the written formula, and what falls to the bottom."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dreamtuner_core.scoring.gate import Gate
from dreamtuner_core.scoring.scores import (
    Limits,
    Score,
    best_match,
    clipped,
    colour,
    cosine,
    edge_contact,
    faults,
    grain,
    ranking,
    sharpness,
)

SIDE = 64


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(seed: int = 0) -> Tensor:
    """[SIDE, SIDE, 3]: soft shapes."""
    small = torch.rand(1, 3, 8, 8, generator=draw(seed))
    return (0.1 + 0.8 * F.interpolate(small, (SIDE, SIDE), mode="bicubic").clamp(0, 1))[0].movedim(0, -1)


def box(top: int, left: int, bottom: int, right: int) -> Tensor:
    mask = torch.zeros(SIDE, SIDE)
    mask[top:bottom, left:right] = 1
    return mask


MIDDLE = box(16, 16, 48, 48)


def faults_of(changed: Tensor, mask: Tensor = MIDDLE) -> tuple[str, ...]:
    return faults(changed, mask, picture(), MIDDLE)


def test_a_sound_picture_has_no_fault() -> None:
    assert faults_of(picture(1)) == ()


@pytest.mark.parametrize(
    ("changed", "mask", "fault"),
    [
        (torch.full((SIDE, SIDE, 3), 0.4), MIDDLE, "blank"),
        (torch.rand(SIDE, SIDE, 3, generator=draw(3)), MIDDLE, "noise"),
        (torch.rand(SIDE, SIDE, 1, generator=draw(3)).expand(-1, -1, 3), MIDDLE, "noise"),
        (((picture(1) - 0.5) * 20 + 0.5).clamp(0, 1), MIDDLE, "burnt"),
        (picture(1), torch.zeros(SIDE, SIDE), "subject not found"),
        (picture(1), box(16, 32, 48, 64), "cut off"),
        (picture(1), box(40, 16, 64, 48), "cut off"),
    ],
)
def test_faults(changed: Tensor, mask: Tensor, fault: str) -> None:
    assert faults_of(changed, mask) == (fault,)


def test_what_is_no_fault() -> None:
    stripes = (torch.arange(SIDE)[:, None] // 4 % 2).float()[..., None].expand(SIDE, SIDE, 3)
    assert grain(stripes) > 0.9  # along the stripes
    assert edge_contact(box(0, 16, 64, 48)) == 1.0
    circle = ((torch.arange(SIDE)[:, None] - 31.5) ** 2 + (torch.arange(SIDE) - 31.5) ** 2 < 32**2).float()
    assert edge_contact(circle) < 0.3  # it only touches the edges
    white = torch.ones(SIDE, SIDE, 3)
    white[20:30, 20:30] = 0.5
    assert "burnt" not in faults(white, MIDDLE, white, MIDDLE)  # a white subject of a white reference


def test_clipped_counts_the_subject_alone() -> None:
    half = torch.full((SIDE, SIDE, 3), 0.5)
    half[:, :32] = torch.tensor([1.0, 0.0, 0.0])
    assert clipped(half, box(0, 0, 64, 32)) == 1
    assert clipped(half, box(0, 32, 64, 64)) == 0
    assert clipped(half, MIDDLE) == 0.5
    assert clipped(half, torch.zeros(SIDE, SIDE)) == 0.5  # of all, where there is no subject


def test_sharpness_is_one_for_itself_and_falls_with_blur() -> None:
    crisp = torch.rand(SIDE, SIDE, 3, generator=draw(5))
    blurred = F.avg_pool2d(crisp.movedim(-1, 0)[None], 5, 1, 2)[0].movedim(0, -1)
    assert sharpness(crisp, MIDDLE, crisp, MIDDLE) == pytest.approx(1)
    assert sharpness(blurred, MIDDLE, crisp, MIDDLE) < 0.6
    assert sharpness(0.5 * crisp, MIDDLE, crisp, MIDDLE) == pytest.approx(1)  # contrast is no sharpness


def test_colour_is_the_histograms_shared_part() -> None:
    red, blue = (torch.tensor(c).expand(SIDE, SIDE, 3) for c in ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0]))
    half = torch.where(torch.arange(SIDE)[:, None, None] < 32, red, blue)
    assert colour(red, MIDDLE, red, MIDDLE) == pytest.approx(1)
    assert colour(red, MIDDLE, blue, MIDDLE) == pytest.approx(0)
    assert colour(half, MIDDLE, blue, MIDDLE) == pytest.approx(0.5)
    assert colour(half, box(40, 0, 64, 64), blue, MIDDLE) == pytest.approx(1)  # of the subject alone


def test_best_match_is_its_formula() -> None:
    reference, other = torch.randn(5, 7, generator=draw(1)), torch.randn(9, 7, generator=draw(2))
    weight = torch.rand(5, generator=draw(3)) + 0.1
    best = [max(float(F.cosine_similarity(r, o, dim=0)) for o in other) for r in reference]
    wanted = sum(b * float(w) for b, w in zip(best, weight)) / float(weight.sum())
    assert best_match(reference, weight, other) == pytest.approx(wanted, abs=1e-6)
    assert best_match(reference, weight, reference[[4, 2, 0, 1, 3]]) == pytest.approx(1)
    assert cosine(reference[0], 3 * reference[0]) == pytest.approx(1)


GOOD, LESS, CUT, LOST = (
    Score(0.9, 0.3, 1.0, 0.8),
    Score(0.7, 0.3, 0.9, 0.9),
    Score(0.95, 0.3, 1.0, 0.9, ("cut off",)),
    Score(0.99, 0.3, 1.0, 0.9, ("burnt",)),
)


def test_ranking() -> None:
    assert ranking([LOST, LESS, CUT, GOOD], Limits()) == [3, 1, 2, 0]
    assert ranking([LOST, LESS, CUT, GOOD], Limits(likeness=0.8)) == [3, 2, 1, 0]  # what passes comes first
    assert ranking([Score(None, None, 1.0, c) for c in (0.2, 0.6)], Limits()) == [1, 0]


def test_why_a_picture_fails() -> None:
    limits = Limits(0.8, 0.35, 0.95)
    assert LESS.failures(limits) == ["likeness below 0.8", "text below 0.35", "sharpness below 0.95"]
    assert CUT.failures(Limits()) == []
    assert LOST.failures(Limits()) == ["burnt"]


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_limits_refuse_nonsense(value: float) -> None:
    with pytest.raises(ValueError, match="min_text"):
        Limits(text=value)


def test_the_gate_tells_figures_and_draws_them() -> None:
    gate = Gate([LOST, LESS, GOOD], Limits(likeness=0.8), "CLIP")
    assert (gate.order, gate.accepted, gate.rejected) == ([2, 1, 0], [2], [1, 0])
    told = json.loads(gate.as_json())
    assert [(p["picture"], p["rank"], p["passed"]) for p in told["pictures"]] == [
        (3, 1, True),
        (2, 2, False),
        (1, 3, False),
    ]
    assert told["likeness_by"] == "CLIP"
    assert told["min_likeness"] == 0.8
    sheet = gate.sheet(torch.stack([picture(i) for i in range(3)]), picture())
    assert sheet.shape[0] == 1
    assert sheet.shape[3] == 3
    one = Gate([GOOD], Limits(), "CLIP").sheet(picture()[None], picture())
    assert one.shape[2] < sheet.shape[2]
