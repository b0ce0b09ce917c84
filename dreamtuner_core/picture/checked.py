"""Pictures where they enter."""

from __future__ import annotations

from torch import Tensor

MOST_MEAN = 5  # of a picture's values: more is 0..255, and less may be a VAE or HDR that goes beyond 1


def checked_pictures(images: Tensor) -> Tensor:
    """IMAGE [B, H, W, 3 or more] of any type -> [B, H, W, 3] in 0..1, fp32, on the CPU.

    Raises ValueError, in one sentence, for other shapes, NaN and infinite values, and values of 0..255.
    """
    if images.ndim != 4 or images.shape[-1] < 3 or images.numel() == 0:
        raise ValueError(f"expected RGB pictures, but got a tensor of shape {tuple(images.shape)}; link an IMAGE.")
    low, high = images.aminmax()  # NaN where any value is
    if not (low.isfinite() and high.isfinite()):
        raise ValueError("the picture has NaN or infinite values; check the node that it comes from.")
    pixels = images[..., :3].float().cpu()
    if (mean := float(pixels.mean())) > MOST_MEAN:
        raise ValueError(f"the picture's values must be in 0..1, but their mean is {mean:.3g}; divide them by 255.")
    return pixels if low >= 0 and high <= 1 else pixels.clamp(0, 1)  # a copy of a large picture only where it must be


def all_finite(values: Tensor) -> bool:
    """By the smallest and the largest value, which are NaN where any is: a large picture takes no memory for it."""
    return all(bool(extreme.isfinite()) for extreme in values.aminmax())
