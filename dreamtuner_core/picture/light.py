"""The light of a subject: whether it is too dark, pale or tinted, and how to correct it within limits.

A well lit subject is not changed, to the bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .masks import empty

INSIDE = 0.9  # of the mask, for a pixel to be measured
DARK, BRIGHT = 0.65, 0.95  # brightest parts below the first are raised to the second
PALE, DEEP = 0.4, 0.1  # darkest parts above the first are lowered to the second
MOST_GAIN, MOST_CONTRAST = 4.0, 1.6  # of a dark subject and of a pale one, which may be white by itself
TINTED, COLOURED = 1.12, 1.6  # strongest over weakest channel of the brightest parts, between which light is tinted
ELSEWHERE = 0.03  # least share of the subject in which the weakest channel of a tinted light is the strongest
BEYOND = 1.05  # times the brightest parts, channel by channel: a stronger channel means another light
NEAR_WHITE = 0.85  # share of the brightest: grey or white pixels above it mean that dark light has no tint
MOST_PIXELS = 2**18


class Light(NamedTuple):
    """How a picture is changed: gain * x + lift for each channel."""

    gain: Tensor
    lift: Tensor


def subject_pixels(picture: Tensor, mask: Tensor | None) -> Tensor:
    """The pixels [N, 3] of a framed picture [1, H, W, 3] that are completely the subject's; all without a mask."""
    pixels = picture[0].reshape(-1, 3) if mask is None else picture[0][mask[0] > INSIDE]
    return pixels[:: max(1, len(pixels) // MOST_PIXELS)]


def scene_pixels(image: Tensor, mask: Tensor | None, pixels: Tensor) -> Tensor:
    """The pixels [M, 3] of image [1, H, W, 3]; only the subject's own pixels where there is nothing beside mask."""
    return pixels if mask is not None and empty(image, mask < 1 - INSIDE) else subject_pixels(image, None)


def measured(pixels: Tensor, scene: Tensor) -> Light | None:
    """The correction for the light of a subject's pixels [N, 3]; None if it needs none.

    scene: pixels [M, 3] of the whole picture, which has the same light.
    """
    if len(pixels) == 0:
        return None
    # if only the subject is dark or pale, and the scene is not, it is black or white by nature
    dark = torch.minimum(pixels.amin(1).quantile(0.01), scene.amin(1).quantile(0.1))
    bright = torch.maximum(pixels.amax(1).quantile(0.99), scene.amax(1).quantile(0.9))
    lifted = 0 < bright < DARK
    balance = _balance_in_the_dark(pixels, scene) if lifted else _balance(pixels)
    zero = torch.zeros(())
    low = (dark - DEEP).clamp(max=bright - BRIGHT / MOST_CONTRAST) if dark > PALE and bright - dark > DEEP else zero
    if not lifted and low <= 0 and balance is None:
        return None
    high = bright if lifted or low > 0 else torch.tensor(BRIGHT)
    gain = (BRIGHT / (high - low)).clamp(max=MOST_GAIN) if lifted or low > 0 else torch.tensor(1.0)
    gains = gain * (torch.ones(3) if balance is None else balance)
    return Light(gains, -low * gains)


def mended(picture: Tensor, mask: Tensor | None, light: Light) -> Tensor:
    """A framed picture [1, H, W, 3] on white, with its light corrected; the white stays white."""
    seen = torch.ones_like(picture[..., :1]) if mask is None else mask[..., None]
    subject = picture - (1 - seen)  # what the subject adds to the white, by its share of each pixel
    lit = torch.minimum((light.gain * subject + light.lift * seen).clamp(min=0), seen)
    return (lit + (1 - seen)).clamp(0, 1)


def _balance(pixels: Tensor) -> Tensor | None:
    """Gains [3] that make the light white, from the brightest pixels; None if their colour may be that of the subject.

    A tint of the light is on everything: the brightest parts are near white, no channel is stronger elsewhere, and some
    parts are strong in the weakest channel. A subject of one colour does not show the light's tint.
    """
    luma = pixels.mean(1)
    brightest = pixels[luma >= luma.quantile(0.98)].mean(0)
    ratio = float(brightest.max() / brightest.min().clamp(min=1e-6))
    weakest = int(brightest.argmin())
    elsewhere = float((pixels.argmax(1) == weakest).float().mean())
    stronger = bool((pixels.quantile(0.995, dim=0) > BEYOND * brightest).any())
    if stronger or not TINTED < ratio < COLOURED or elsewhere < ELSEWHERE or _has_neutral(pixels, 0.5):
        return None
    return brightest.max() / brightest


def _balance_in_the_dark(pixels: Tensor, scene: Tensor) -> Tensor | None:
    """`_balance` for light that is too dark anyhow, with less evidence.

    In a picture of many colours each channel is strong somewhere, so its maximum shows the light. A red object, or a
    green field, has such a maximum by nature: so the smaller correction of subject and scene is used.
    """
    if _has_neutral(pixels, NEAR_WHITE):
        return None
    tops = torch.stack([of.quantile(0.99, dim=0).clamp(min=1e-6) for of in (pixels, scene)])
    return (tops.amax(1, keepdim=True) / tops).amin(0).clamp(max=COLOURED)


def _has_neutral(pixels: Tensor, bright: float) -> bool:
    """Whether some pixels above that share of the brightest are grey or white: then the light has no tint."""
    luma = pixels.mean(1)
    neutral = (pixels.amax(1) < TINTED * pixels.amin(1)) & (luma > bright * luma.max())
    return bool(neutral.float().mean() > 0.01)
