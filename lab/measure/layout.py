"""Where subjects stand: whether as in the reference's own picture (leak), and whether elsewhere each time (variety)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from statistics import fmean

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from lab.measure.eye import GRID, as_floats
from lab.measure.studio import REFERENCE_SCENE, REFERENCE_SEED, REFERENCE_SIDE, REFERENCE_SIZES
from lab.measure.subjects import Look, placed

PLACEMENTS = range(100, 124)  # seeds of where the subject might as well stand in a new picture


class Layout:
    """Compares masks with those of the references, for pictures of `side` pixels."""

    def __init__(self, side: int) -> None:
        self.side = side
        self._own: dict[Look, tuple[Tensor, float, float]] = {}

    def leak(self, subject: Tensor, look: Look) -> float:
        """subject: [56, 56] in 0..1. 1 exactly where it stood; 0 no nearer to that than pictures are by chance."""
        own, by_chance, _ = self._of(look)
        return (overlap(subject > 0.5, own) - by_chance) / (1 - by_chance)

    def variety(self, subjects: Tensor, look: Look) -> list[float]:
        """Of each of a subject's pictures [N, 56, 56], N at least 2: how far from the others its subject stands.

        1 as true pictures by chance, 0 at the very same place.
        """
        by_chance = self._of(look)[2]
        masks = list(subjects > 0.5)
        apart = [fmean(1 - overlap(a, b) for j, b in enumerate(masks) if j != i) for i, a in enumerate(masks)]
        return [distance / (1 - by_chance) for distance in apart]

    def _of(self, look: Look) -> tuple[Tensor, float, float]:
        """The reference's own mask [56, 56], and mean overlaps of the same drawing placed as in any picture: with
        that, and with each other."""
        if look not in self._own:
            size = REFERENCE_SIDE * self.side
            own = small(placed(look, REFERENCE_SCENE, size, REFERENCE_SEED, REFERENCE_SIZES).mask)
            anywhere = [small(placed(look, REFERENCE_SCENE, self.side, seed).mask) for seed in PLACEMENTS]
            pairs = combinations(anywhere, 2)
            self._own[look] = own, _mean_overlap((own, x) for x in anywhere), _mean_overlap(pairs)
        return self._own[look]


def _mean_overlap(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    return fmean(overlap(a, b) for a, b in pairs)


def small(mask: np.ndarray) -> Tensor:
    """[H, W] uint8 -> [56, 56], true on the subject."""
    return F.interpolate(as_floats(mask)[None, None], [GRID] * 2, mode="area")[0, 0] > 0.5


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two masks; 0 where both are empty."""
    return float((a & b).sum() / (a | b).sum().clamp(min=1))
