"""Region masks: the part of a region that each row of a call covers, whether it is an image, an area or a tile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...subject import to_grid
from ..options import Options, grid
from ..rows import UNKNOWN, Row, Spot, cut, find

Area = tuple[int, ...] | None
"""(height, width, top, left) of a regional conditioning, in latents."""


class Regions:
    """The region masks of one run's subjects, resized to each layer's tokens and cached.

    regions: of each subject, [1 or B, H, W] in 0..1, one for all pictures or one for each, or None. shape: of the
    run's noise, [B, C, ..., h, w].
    """

    def __init__(self, regions: Sequence[Tensor | None], shape: Sequence[int]) -> None:
        self.regions, self.size = list(regions), tuple(shape[-2:])
        self.each_its_own = any(region is not None and len(region) > 1 for region in regions)
        self._kept: dict[tuple, Tensor] = {}
        for region in regions:
            if region is not None and len(region) not in (1, shape[0]):
                raise ValueError(
                    f"Apply Self-Subject Attention: expected one region mask, or one for each of the {shape[0]} "
                    f"pictures of the batch, but got {len(region)}; give as many."
                )

    def __bool__(self) -> bool:
        return any(region is not None for region in self.regions)

    def spots(
        self, x: Tensor, rows: Sequence[Row], areas: Sequence[Area], pictures: Tensor | None, asked: int
    ) -> list[Spot]:
        """Where each row of a call [R, C, h, w] lies.

        areas: of each conditioning. pictures: the step's whole pictures, in which what other packs cut out is found.
        asked: how many of them the host asked about; another number is a window, whose pictures are found in the
        same way. Raises ValueError where a row is not found.
        """
        found, all_asked = [], pictures is None or len(pictures) == asked
        for tile, row in zip(x, rows):
            size, area = tuple(tile.shape[-2:]), areas[row.chunk]
            place = (*size, 0, 0) if size == self.size else area if area is not None and size == area[:2] else None
            picture = (row.picture if all_asked else UNKNOWN) if self.each_its_own else 0
            spot = None if place is None or picture == UNKNOWN else Spot(picture, *place)
            if spot is None and pictures is not None:
                spot = find(tile, pictures)
            if spot is None:
                raise ValueError(
                    "Apply Self-Subject Attention: expected whole pictures, or parts cut out of them, to lay the "
                    "region on, but another node changes them before the model; unlink the region, or "
                    "remove that node."
                )
            found.append(spot)
        return found

    def at(self, i: int, spots: Sequence[Spot], options: Options, device: torch.device) -> Tensor | None:
        """The region weight of subject i for each token of a layer: [N] if all spots are equal, else [spots, N]."""
        region = self.regions[i]
        if region is None:
            return None
        if len(region) == 1:
            spots = [spot._replace(picture=0) for spot in spots]
        spots = tuple(spots) if len(set(spots)) > 1 else tuple(spots[:1])
        here = grid(options)
        assert here is not None
        key = (i, spots, here)
        if key not in self._kept:
            seen = [to_grid(self._cut(region, spot), *here) for spot in spots]
            self._kept[key] = (seen[0] if len(seen) == 1 else torch.stack(seen)).to(device)
        return self._kept[key]

    def _cut(self, region: Tensor, spot: Spot) -> Tensor:
        """The part of the region at that spot, at the latent's size: [1, h, w]."""
        whole = to_grid(region[spot.picture][None], *self.size).reshape(1, *self.size)
        return cut(whole, *spot[1:])
