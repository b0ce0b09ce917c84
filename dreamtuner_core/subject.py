"""A reference as data, and how a picture and its mask are framed (section 3.1: the subject on white)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .picture.framing import Square, on_white, resized
from .picture.masks import box_of, what_is_marked, without_specks

MARGIN = 0.125  # of the subject's longer side, kept free all round it
SIZE_STEP = 8  # pixels to one latent


@dataclass(frozen=True, eq=False)
class Subject:
    """One reference, ready for the U-Net. The type of the socket DREAMTUNER_SUBJECT.

    picture: [1, H, W, 3] in 0..1, the subject framed, on white where there is a mask.
    mask: [1, H, W] in 0..1, m_r; None where the whole picture is the subject.
    latent: [1, C, H/8, W/8], x^r, the VAE's output.
    caption: the host's CONDITIONING that describes the reference; None is zeros instead of a text.
    noise_seed: the reference's noise, drawn once on the CPU.
    encoding: the picture encoded by a subject encoder (a type of `host`); None without one.
    views: other pictures of the same subject, each as a Subject without views; all share one encoding.
    """

    picture: Tensor
    mask: Tensor | None
    latent: Tensor
    caption: Any | None
    noise_seed: int = 0
    encoding: Any | None = None
    views: tuple[Subject, ...] = ()

    def pictures(self) -> tuple[Subject, ...]:
        """Each of its pictures as a separate Subject, the main one first."""
        return (replace(self, views=()), *self.views) if self.views else (self,)

    def encoded(self, encoding: Any | None) -> Subject:
        """The same subject with this encoding of all its pictures."""
        return replace(self, encoding=encoding, views=tuple(replace(view, encoding=encoding) for view in self.views))

    def noise(self) -> Tensor:
        """The reference's noise, [1, C, H/8, W/8] on the CPU; the same for one seed on every machine and step."""
        generator = torch.Generator().manual_seed(self.noise_seed)
        return torch.randn(self.latent.shape, generator=generator)

    def foreground(self, height: int, width: int) -> Tensor:
        """m_r resized to a grid of tokens by area: [height * width] in 0..1."""
        if self.mask is None:
            return torch.ones(height * width)
        return to_grid(self.mask, height, width)


def to_grid(mask: Tensor, height: int, width: int) -> Tensor:
    """Resize a mask [1, H, W] to a grid of tokens: [height * width], each the mean over the pixels that it touches.

    If a side does not divide, neighbouring windows share a row or column, like the receptive fields of the U-Net's
    stride-2 convolutions.
    """
    return F.adaptive_avg_pool2d(mask.float(), (height, width)).flatten()


def token_grid(height: int, width: int, tokens: int) -> tuple[int, int]:
    """Rows and columns of a layer with so many tokens, for a latent of height x width.

    Each downsampling halves a side and rounds up, as a stride-2 convolution with padding 1 does. Raises ValueError if
    no downsampling has so many tokens.
    """
    rows, columns = height, width
    while rows * columns > tokens:
        rows, columns = -(-rows // 2), -(-columns // 2)
    if rows * columns != tokens:
        raise ValueError(f"{tokens} tokens are not a downsampling of a {height}x{width} latent.")
    return rows, columns


def subject_mask(
    mask: Tensor, marks: str, image: Tensor | None = None, find: Callable[[], Tensor] | None = None
) -> Tensor:
    """Invert a MASK [1, H, W] if needed, so that 1 is the subject.

    marks: "subject", "background", or "auto" to decide by the mask (masks.what_is_marked, with image and find): the
    mask that LoadImage makes of a cut-out picture marks what is transparent.
    """
    if marks == "auto":
        marks = what_is_marked(mask, image, find)
    return 1 - mask if marks == "background" else mask


def frame(image: Tensor, mask: Tensor | None, resolution: int) -> tuple[Tensor, Tensor | None]:
    """Crop and resize to the subject, so that it is neither cut off nor tiny. resolution: rounded to a multiple of 8.

    image: [1, H, W, 3]; mask: [1, H, W], 1 = subject. With a mask: the subject on white, in the middle of a square of
    `resolution`, with MARGIN around it; specks are ignored. Without: the whole picture at its own aspect ratio, with
    the area of that square. Returns picture [1, H', W', 3] and mask [1, H', W'] or None; H' and W' are multiples of 8.
    """
    resolution = round(resolution / SIZE_STEP) * SIZE_STEP  # callers of the API may send values that the page cannot
    if mask is None:
        scale = resolution / (image.shape[1] * image.shape[2]) ** 0.5
        height, width = (max(SIZE_STEP, round(side * scale / SIZE_STEP) * SIZE_STEP) for side in image.shape[1:3])
        return resized(image, height, width), None

    mask = without_specks(mask)
    top, bottom, left, right = box_of(mask)
    side = round(max(bottom - top, right - left) * (1 + 2 * MARGIN))
    square = Square((top + bottom - side) // 2, (left + right - side) // 2, side)
    return on_white(image, mask, square, resolution)
