"""The pairs (section 3.3): {reference on white, "a <class> S*"} and {regular picture, "a <class>"}, and their draws."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def generator(*key: object) -> torch.Generator:
    """A CPU generator that depends only on the key, so that a resumed tuning draws the same numbers."""
    digest = hashlib.sha256(":".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True)
class Draw:
    """The random numbers of one pair. Index 0 is the reference, 1 the regular picture.

    flip: [2] of 0 or 1. regular: index of the picture. level: [2], indices of noise levels. noise: [2, C, h, w].
    """

    flip: Tensor
    regular: int
    level: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Pairs:
    """The latents of a tuning, scaled for the U-Net, each plain and flipped.

    reference: [2, C, h, w]; regular: [N, 2, C, h, w], N may be 0; mask: [2, 1, h, w], the subject, or None.
    """

    reference: Tensor
    regular: Tensor
    mask: Tensor | None = None

    def draw(self, seed: int, step: int, part: int, levels: int) -> Draw:
        """The draw of one pair; depends only on (seed, step, part). levels: how many noise levels there are."""
        chance = generator("pair", seed, step, part)
        return Draw(
            flip=torch.randint(2, (2,), generator=chance),  # probability 0.5
            regular=int(torch.randint(max(1, len(self.regular)), (1,), generator=chance)),
            level=torch.randint(levels, (2,), generator=chance),
            noise=torch.randn(2, *self.reference.shape[1:], generator=chance),
        )

    def latents(self, draw: Draw) -> Tensor:
        """The pair, [2, C, h, w]; without regular pictures [1, C, h, w]."""
        rows = [self.reference[draw.flip[0]]]
        if len(self.regular):
            rows.append(self.regular[draw.regular, draw.flip[1]])
        return torch.stack(rows)

    def counted(self, draw: Draw) -> Tensor | None:
        """The weight of the reference's error, [1, h, w] in 0..1, flipped like the reference; None is 1 everywhere."""
        return None if self.mask is None else self.mask[draw.flip[0]]
