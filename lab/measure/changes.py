"""What may be wrong with a reference: another light, a smaller picture, blur, a turn, a crop.

(picture [1, H, W, 3], mask [1, H, W]) -> the same, changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
CROPPED = 0.3  # share of the subject's width that is cut off


def _together(change: Callable[[Tensor], Tensor]) -> Change:
    """Change the picture and its mask alike; `change` works on [1, 4, H, W]."""

    def apply(picture: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        made = change(torch.cat([picture, mask[..., None]], dim=-1).movedim(-1, 1))
        return made[:, :3].movedim(1, -1).clamp(0, 1), made[:, 3].clamp(0, 1)

    return apply


def dark(picture: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Half as bright, in warm light."""
    return picture * torch.tensor([0.6, 0.5, 0.4]), mask


def small(x: Tensor) -> Tensor:
    """A quarter of the side."""
    return F.interpolate(x, scale_factor=0.25, mode="area")


def blurred(x: Tensor) -> Tensor:
    """Out of focus by about a fortieth of the side."""
    side = x.shape[-1]
    soft = F.interpolate(x, [side // 10] * 2, mode="bilinear", antialias=True)
    return F.interpolate(soft, [side] * 2, mode="bicubic")


def turned(x: Tensor) -> Tensor:
    """By 20 degrees; the corners mirror what is inside."""
    angle = math.radians(20)
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
    grid = F.affine_grid(rotation[None], list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def cut(x: Tensor) -> Tensor:
    """Without the right part of the subject."""
    columns = torch.nonzero(x[0, 3].amax(0) > 0.5).flatten()
    left, right = int(columns[0]), int(columns[-1]) + 1
    return x[..., : right - round(CROPPED * (right - left))]


CHANGES: dict[str, Change] = {
    "dark": dark,
    "small": _together(small),
    "blurred": _together(blurred),
    "turned": _together(turned),
    "cut": _together(cut),
}
