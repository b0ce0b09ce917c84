"""How good pictures of a subject are: their faults, their likeness to the reference, and their ranking.

Pictures are [H, W, 3] in 0..1, and masks [H, W] in 0..1, 1 is the subject.

Ours: the paper (table 1) measures CLIP-I and CLIP-T on whole pictures. Here each figure is of the subject alone, so
that a different scene does not lower it. Each picture is measured alone: no figure depends on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ranges import check_number

BLANK = 0.02  # a picture with a smaller standard deviation is blank
CELL, GRAIN = 2, 0.5  # pixels; a picture whose neighbouring cells have a smaller correlation is noise
EXTREME, BURNT = 0.01, 0.25  # a value this near 0 or 1 is clipped; largest share of such pixels above the reference's
CUT = 0.3  # largest share of the subject's width or height on the picture's edge
BINS = 4  # of the colour histogram, per channel
CROP = 256  # pixels; sharpness is compared on crops of at most this size
FATAL = ("blank", "noise", "burnt", "subject not found")  # never pass; a cut-off picture only ranks low


@dataclass(frozen=True)
class Limits:
    """What a picture must reach; 0 is off."""

    likeness: float = 0.0
    text: float = 0.0
    sharpness: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_number(f"min_{name}", value, 0, 1)


@dataclass(frozen=True)
class Score:
    """The figures of one picture. likeness and text: cosines in -1..1, None if not measured.

    sharpness: 0 or more, 1 is the reference's. colour: 0..1, the share of the subject's colours that it has in common
    with the reference.
    """

    likeness: float | None
    text: float | None
    sharpness: float
    colour: float
    faults: tuple[str, ...] = ()

    def failures(self, limits: Limits) -> list[str]:
        """Why it does not pass, in words; empty if it passes."""
        found = [fault for fault in self.faults if fault in FATAL]
        for name, least in vars(limits).items():
            value = getattr(self, name)
            if least and value is not None and value < least:
                found.append(f"{name} below {least:g}")
        return found

    def key(self, limits: Limits) -> tuple[bool, bool, float]:
        """Sorts best first: those that pass, then those without a fault, then by likeness (colour if not measured)."""
        value = self.colour if self.likeness is None else self.likeness
        return bool(self.failures(limits)), bool(self.faults), -value


def ranking(scores: Sequence[Score], limits: Limits) -> list[int]:
    """Indices of the pictures, best first."""
    return sorted(range(len(scores)), key=lambda i: scores[i].key(limits))


def faults(picture: Tensor, mask: Tensor, reference: Tensor, reference_mask: Tensor) -> tuple[str, ...]:
    """The faults of a picture [H, W, 3] with its subject's mask [H, W]; the reference's sizes may differ."""
    if picture.std() < BLANK:
        return ("blank",)
    if grain(picture) < GRAIN:
        return ("noise",)
    found = []
    if clipped(picture, mask) - clipped(reference, reference_mask) > BURNT:
        found.append("burnt")
    if not mask.max() > 0.5:
        found.append("subject not found")
    elif edge_contact(mask) > CUT:
        found.append("cut off")
    return tuple(found)


def grain(picture: Tensor) -> float:
    """Correlation of neighbouring cells of a picture [H, W, 3], along the better axis: near 0 in noise.

    1 for a picture of a single row or column of cells, which is too small to tell.
    """
    if min(picture.shape[:2]) < 2 * CELL:
        return 1.0
    cells = F.avg_pool2d(picture.movedim(-1, 0)[None].double(), CELL)[0]  # [3, h, w]
    cells = cells - cells.mean(dim=(1, 2), keepdim=True)
    pairs = ((cells[:, 1:], cells[:, :-1]), (cells[:, :, 1:], cells[:, :, :-1]))
    return float(max((a * b).mean() for a, b in pairs) / (cells**2).mean().clamp_min(1e-12))


def clipped(picture: Tensor, mask: Tensor) -> float:
    """Share of the subject's pixels whose every channel is clipped, 0..1; of all pixels if the mask is empty.

    picture: [H, W, 3]; mask: [H, W].
    """
    at_end = ((picture < EXTREME) | (picture > 1 - EXTREME)).all(dim=-1).double()
    weight = mask.double() if mask.max() > 0.5 else torch.ones_like(at_end)
    return float((at_end * weight).sum() / weight.sum())


def edge_contact(mask: Tensor) -> float:
    """Share of the subject's width or height that lies on an edge of the picture, the largest of the four: 0..1.

    mask: [H, W], not empty.
    """
    inside = mask > 0.5
    width, height = (int(inside.any(dim).sum()) for dim in (0, 1))
    on_edges = [(inside[0], width), (inside[-1], width), (inside[:, 0], height), (inside[:, -1], height)]
    return max(float(edge.sum()) / length for edge, length in on_edges)


def sharpness(picture: Tensor, mask: Tensor, reference: Tensor, reference_mask: Tensor) -> float:
    """How sharp the subject is, relative to the reference: 1 is as sharp, 0 has no edge; noise exceeds 1.

    Square pictures [S, S, 3] and masks [S, S], framed alike; the larger pair is resized to the smaller one, because a
    larger size alone is not sharper.
    """
    side = min(picture.shape[0], reference.shape[0], CROP)
    one, other = (_edges(*pair, side) for pair in ((picture, mask), (reference, reference_mask)))
    return one / max(other, 1e-9)


def _edges(picture: Tensor, mask: Tensor, side: int) -> float:
    """Mean energy inside the subject of what a blur of 3 pixels removes, relative to the subject's contrast."""
    four = torch.cat([picture.mean(-1, keepdim=True), mask[..., None]], dim=-1).movedim(-1, 0)[None].double()
    grey, inside = F.interpolate(four, (side, side), mode="bilinear", antialias=True)[0]
    weight = inside * (inside > 0.5)
    high = grey - F.avg_pool2d(F.pad(grey[None, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0, 0]
    total = weight.sum().clamp_min(1e-9)
    mean = (grey * weight).sum() / total
    contrast = ((grey - mean) ** 2 * weight).sum() / total
    return float((((high**2) * weight).sum() / total / contrast.clamp_min(1e-6)).sqrt())


def colour(picture: Tensor, mask: Tensor, reference: Tensor, reference_mask: Tensor) -> float:
    """Shared part of the subjects' colour histograms, 0..1. Pictures [H, W, 3] and masks [H, W], of any two sizes."""
    pairs = ((picture, mask), (reference, reference_mask))
    return float(torch.minimum(*(_histogram(*pair) for pair in pairs)).sum())


def _histogram(picture: Tensor, mask: Tensor) -> Tensor:
    """The subject's colours, [BINS ** 3], with sum 1; a colour between two bins counts in both."""
    position = picture.reshape(-1, 3).double().clamp(0, 1) * (BINS - 1)
    index = torch.arange(BINS, dtype=torch.float64)
    near = (1 - (position[..., None] - index).abs()).clamp_min(0)  # [HW, 3, BINS]
    joint = torch.einsum("pa,pb,pc,p->abc", *near.unbind(1), mask.reshape(-1).double())
    return joint.flatten() / joint.sum().clamp_min(1e-9)


def best_match(reference: Tensor, weight: Tensor, picture: Tensor) -> float:
    """How well the picture's tokens match the reference's: the weighted mean of each one's best cosine, -1..1.

    reference: [M, C]; weight: [M], m_r of its tokens; picture: [N, C].
    """
    a, b = (F.normalize(x.float(), dim=-1) for x in (reference, picture))
    best = (a @ b.T).amax(dim=1)
    return float((best * weight).sum() / weight.sum())


def cosine(one: Tensor, other: Tensor) -> float:
    """The cosine of two vectors [C] or [1, C], -1..1."""
    return float(F.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0))
