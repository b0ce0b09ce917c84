"""Hints about a reference picture: what was done with it, and what may be a problem."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .light import subject_pixels
from .masks import box_of, touched_sides

NOTES = {
    "turned": "The mask marks the background, so it was inverted.",
    "found": "There is no mask, so the subject was found in the picture.",
    "nothing_found": "Nothing stands out in this picture, so all of it is the subject; paint the subject to leave the "
    "rest out.",
    "all_subject": "All of this picture is the subject.",
    "mended": "The light was corrected.",
    "too_dark": "The subject is very dark; a brighter picture, or light: auto, shows more of it.",
    "too_bright": "The subject is very bright; a darker picture shows more of it.",
    "blurred": "The picture is blurred; a sharper one shows more detail.",
    "small": "The subject is smaller than 256 pixels; a larger picture shows more detail.",
    "cut": "The subject is cut at the picture's border; what is not visible is invented.",
    "no_detail": "The subject is one flat colour; if the picture is not, save it as an ordinary 8-bit RGB picture.",
    "cut_short": "The picture ends in one flat colour; its file may be cut short.",
    "ended": "The last day of the allowed uses is past; ask the owner before you use this subject.",
}
"""Sentences by their keys, which the locales translate."""

SMALL = 256  # pixels of the subject's longer side
VERY_DARK, VERY_BRIGHT = 0.2, 0.9  # brightest and median parts of the subject
FLAT = 0.02  # standard deviation
EDGE = 1 / 60  # of the frame's side: a picture whose sharpest edges are wider is blurred
SHORT = 0.03  # of the picture's rows
BLOCK = 16  # rows of a JPEG file's block; the last one may be filled in part
FILLED = (0, 127, 128, 129)  # values of 0..255 with which readers fill what a file lacks


def hints(image: Tensor, mask: Tensor | None, picture: Tensor, framed_mask: Tensor | None) -> list[str]:
    """Keys of NOTES that apply to image [1, H, W, 3] and mask [1, H, W], and to both as framed."""
    size = max(image.shape[1:3])
    if mask is not None:
        top, bottom, left, right = box_of(mask)
        size = max(bottom - top, right - left)
    pixels = subject_pixels(picture, framed_mask)
    found = _light_hints(pixels)
    if "no_detail" not in found and size >= SMALL and _blurred(picture, framed_mask):
        found.append("blurred")
    if size < SMALL:
        found.append("small")
    if mask is not None and 0 < len(touched_sides(mask)) < 4:  # all four: a cut-out trimmed to its content
        found.append("cut")
    if _cut_short(image):
        found.append("cut_short")
    return found


def _light_hints(pixels: Tensor) -> list[str]:
    if len(pixels) == 0:
        return []
    found = ["no_detail"] if pixels.std(0, correction=0).max() < FLAT else []
    if pixels.amax(1).quantile(0.98) < VERY_DARK or pixels.median() < VERY_DARK / 4:
        found.append("too_dark")
    elif pixels.amin(1).median() > VERY_BRIGHT:
        found.append("too_bright")
    return found


def _blurred(picture: Tensor, mask: Tensor | None) -> bool:
    """Whether the subject has no sharp edge. Only its inside counts: the outline against white is always sharp."""
    luma = picture[0].mean(-1)
    step = torch.maximum((luma[1:, 1:] - luma[:-1, 1:]).abs(), (luma[1:, 1:] - luma[1:, :-1]).abs())
    if mask is not None:
        hidden = F.max_pool2d(1 - mask[None], 7, stride=1, padding=3)[0, 0]
        inside = hidden[1:, 1:] < 0.05
        step, luma = step[inside], luma[1:, 1:][inside]
    if step.numel() < 64:
        return False
    contrast = _quantile(luma, 0.98) - _quantile(luma, 0.02)
    side = (picture.shape[1] * picture.shape[2]) ** 0.5
    return bool(_quantile(step, 0.995) * EDGE * side < contrast)


def _quantile(values: Tensor, share: float) -> Tensor:
    """The quantile of any number of values; torch's own has a limit of 16 million."""
    flat = values.flatten()
    return flat.kthvalue(max(1, round(share * len(flat)))).values


def _cut_short(image: Tensor) -> bool:
    """Whether a reader filled the last rows: all of them one of its values, and the image breaks off above them."""
    last = image[0, -1, -1]
    if not any(torch.equal((last * 255).round(), torch.full_like(last, value)) for value in FILLED):
        return False
    filled = (image[0] == last).all(-1).float().mean(1)  # [H]: the share of each row
    flat = int((filled == 1).flip(0).long().cumprod(0).sum())
    rows = max(2, round(len(filled) * SHORT))
    above = filled[max(0, len(filled) - flat - 2 * BLOCK) : len(filled) - flat]
    margin = bool((filled[:rows] == 1).all())  # the same above: a plain background
    return flat >= rows and not margin and len(above) > 0 and bool(above.min() < 0.5)
