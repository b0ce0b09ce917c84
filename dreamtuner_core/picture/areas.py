"""Connected areas of a mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GRID = 320  # longest side of the grid on which areas are separated


def connected(inside: Tensor) -> Tensor:
    """Label connected areas (8 neighbours): inside [H, W] bool -> labels [H, W], 0 outside, areas from 1 up.

    Each pixel begins with its own number. In each round an area's number becomes the largest that any of its pixels has
    beside it, until nothing changes: few rounds for an area of any shape.
    """
    numbers = torch.arange(1, inside.numel() + 1).reshape(inside.shape) * inside
    highest = torch.arange(inside.numel() + 1)  # by number: the largest known number of its area
    while True:
        wider = _neighbours_maximum(numbers) * inside
        if torch.equal(wider, numbers):
            break
        highest.scatter_reduce_(0, numbers.flatten(), wider.flatten(), "amax")
        highest = highest[highest]  # which may already have a larger one
        numbers = highest[numbers]
    return torch.unique(numbers, return_inverse=True)[1] + int(bool(inside.all()))


def _neighbours_maximum(numbers: Tensor) -> Tensor:
    """The largest of each pixel and its 8 neighbours, [H, W]. For positive integers, which max_pool2d does not take."""
    rows = F.pad(numbers, (0, 0, 1, 1)).unfold(0, 3, 1)
    rows = rows[..., 0].maximum(rows[..., 1]).maximum(rows[..., 2])
    columns = F.pad(rows, (1, 1)).unfold(1, 3, 1)
    return columns[..., 0].maximum(columns[..., 1]).maximum(columns[..., 2])


def largest(mask: Tensor, threshold: float = 0.5) -> Tensor:
    """Only the largest area of mask [H, W] in 0..1 above the threshold, with its soft edge: [H, W]."""
    small = F.interpolate(mask[None, None], grid(mask), mode="area")[0, 0]
    labels = connected(small > threshold)
    if labels.max() == 0:
        return mask
    kept = labels == torch.bincount(labels.flatten())[1:].argmax() + 1
    near = F.max_pool2d(kept[None].float(), 3, stride=1, padding=1)
    return mask * F.interpolate(near[None], mask.shape, mode="nearest")[0, 0]


def holes(mask: Tensor, share: float) -> Tensor:
    """Where mask [H, W] bool has holes: areas outside it that reach no border, each at most `share` of its own area."""
    labels = connected(F.pad(~mask, (1, 1, 1, 1), value=True))
    small = torch.bincount(labels.flatten()) <= share * mask.sum()
    small[0] = small[labels[0, 0]] = False
    return small[labels][1:-1, 1:-1]


def grid(mask: Tensor) -> tuple[int, int]:
    """Rows and columns of a smaller grid for mask [H, W], so that labelling is fast."""
    shrink = min(1.0, GRID / max(mask.shape))
    height, width = (max(1, round(side * shrink)) for side in mask.shape)
    return height, width
