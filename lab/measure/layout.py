"""Layout leak: whether a subject stands where it stood in the reference's own picture."""

from __future__ import annotations

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
        self._own: dict[Look, tuple[Tensor, float]] = {}

    def leak(self, subject: Tensor, look: Look) -> float:
        """subject: [56, 56] in 0..1. 1 exactly where it stood; 0 no nearer to that than pictures are by chance."""
        own, by_chance = self._of(look)
        return (overlap(subject > 0.5, own) - by_chance) / (1 - by_chance)

    def _of(self, look: Look) -> tuple[Tensor, float]:
        """The reference's own mask [56, 56], and its mean overlap with the same drawing placed as in any picture."""
        if look not in self._own:
            size = REFERENCE_SIDE * self.side
            own = small(placed(look, REFERENCE_SCENE, size, REFERENCE_SEED, REFERENCE_SIZES).mask)
            anywhere = [small(placed(look, REFERENCE_SCENE, self.side, seed).mask) for seed in PLACEMENTS]
            self._own[look] = own, float(np.mean([overlap(own, other) for other in anywhere]))
        return self._own[look]


def small(mask: np.ndarray) -> Tensor:
    """[H, W] uint8 -> [56, 56], true on the subject."""
    return F.interpolate(as_floats(mask)[None, None], [GRID] * 2, mode="area")[0, 0] > 0.5


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two masks; 0 where both are empty."""
    return float((a & b).sum() / (a | b).sum().clamp(min=1))
