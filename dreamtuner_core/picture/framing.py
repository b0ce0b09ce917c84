"""Resizing a picture into its frame in strips, so that a large picture needs little extra memory.

A bilinear resize with antialiasing is one pass along the rows and one along the columns, so strips give exactly the
values of the whole.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 256  # of a picture at a time
COLUMNS = 64  # of its frame at a time


class Square(NamedTuple):
    """A square in pixels of a picture; it may extend beyond the picture."""

    top: int
    left: int
    side: int


def on_white(image: Tensor, mask: Tensor, square: Square, resolution: int) -> tuple[Tensor, Tensor]:
    """Cut a square out of image [1, H, W, 3], put it on white by mask [1, H, W], and resize it.

    Returns picture [1, resolution, resolution, 3] and mask [1, resolution, resolution].
    """
    channels = [_one_channel(square, resolution, mask[0], image[0, ..., i]) for i in range(3)]
    return torch.stack(channels, dim=-1)[None], _one_channel(square, resolution, mask[0])[None]


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """Resize image [B, H, W, C] to [B, height, width, C], clamped to 0..1."""
    planes = (plane[:, None].float().clamp(0, 1) for plane in image.unbind(-1))
    return torch.stack([_resize(plane, (height, width))[:, 0] for plane in planes], dim=-1).clamp(0, 1)


def _one_channel(square: Square, resolution: int, mask: Tensor, channel: Tensor | None = None) -> Tensor:
    """A channel [H, W] on white, or the mask itself: [resolution, resolution]."""
    height, width = mask.shape
    top, bottom = max(0, square.top), min(height, square.top + square.side)
    left, right = max(0, square.left), min(width, square.left + square.side)
    beside = (left - square.left, square.left + square.side - right)
    ground = 0.0 if channel is None else 1.0  # beyond the picture's border
    across = torch.empty(bottom - top, resolution)  # kept apart from what is made for each strip and freed after it
    for start in range(top, bottom, ROWS):
        rows = slice(start, min(start + ROWS, bottom)), slice(left, right)
        seen = strip = mask[rows]
        if channel is not None:
            strip = channel[rows].clamp(0, 1) * seen + (1 - seen)
        strip = F.pad(strip, beside, value=ground)[None, None]
        across[start - top : rows[0].stop - top] = _resize(strip, (strip.shape[2], resolution))[0, 0]
    beyond = _resize(torch.full((1, 1, 1, square.side), ground), (1, resolution))[0, 0]  # rounded as the rows within
    above, below = top - square.top, square.top + square.side - bottom
    made = torch.empty(resolution, resolution)
    for start in range(0, resolution, COLUMNS):
        columns = slice(start, start + COLUMNS)
        empty = beyond[:, columns]
        whole = torch.cat([empty.expand(above, -1), across[:, columns], empty.expand(below, -1)])  # [side, COLUMNS]
        made[:, columns] = _resize(whole[None, None], (resolution, whole.shape[1]))[0, 0]
    return made.clamp(0, 1)


def _resize(plane: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(plane, size, mode="bilinear", antialias=True, align_corners=False)
