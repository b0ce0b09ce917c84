"""The report picture: the loss, raw and smoothed, and under it what the model drew along the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

WIDTH, PLOT_HEIGHT, MARGIN, CAPTION = 768, 240, 8, 16
INK, PALE, GRID = (20, 60, 160), (178, 196, 232), (228, 228, 228)


def smoothed(losses: Sequence[float], window: int = 25) -> list[float]:
    """Mean of the last `window` losses at each step, of fewer at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(losses) + 1)
    begins = np.maximum(0, ends - window)
    return ((sums[ends] - sums[begins]) / (ends - begins)).tolist()


def report(title: str, losses: Sequence[float], samples: Mapping[int, Tensor], columns: Sequence[str]) -> Tensor:
    """[1, H, W, 3] in 0..1. samples: by step, [len(columns), h, w, 3] in 0..255 (uint8)."""
    side = (WIDTH - MARGIN) // max(1, len(columns)) - MARGIN
    rows = sorted(samples)
    height = PLOT_HEIGHT + 3 * CAPTION + len(rows) * (side + CAPTION + MARGIN) + MARGIN
    page = Image.new("RGB", (WIDTH, height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default()
    pen.text((MARGIN, 2), _plain(title), "black", font)
    _plot(pen, losses, (MARGIN, CAPTION + 2, WIDTH - MARGIN, CAPTION + PLOT_HEIGHT))
    top = PLOT_HEIGHT + 2 * CAPTION
    for i, column in enumerate(columns):
        pen.text((MARGIN + i * (side + MARGIN), top), _plain(column), "black", font)
    top += CAPTION
    for step in rows:
        pen.text((MARGIN, top), f"step {step}", "black", font)
        for i, picture in enumerate(samples[step]):
            shown = Image.fromarray(picture.numpy()).resize((side, side), Image.Resampling.LANCZOS)
            page.paste(shown, (MARGIN + i * (side + MARGIN), top + CAPTION))
        top += side + CAPTION + MARGIN
    return torch.from_numpy(np.asarray(page).copy()).float()[None] / 255


def _plot(pen: ImageDraw.ImageDraw, losses: Sequence[float], box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    pen.rectangle(box, outline=GRID)
    if not losses:
        return
    mean = smoothed(losses)
    highest = max(float(np.quantile(losses, 0.98)), max(mean), 1e-9)  # a few spikes must not flatten the rest

    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        span = max(1, len(values) - 1)
        return [
            (left + (right - left) * i / span, bottom - (bottom - top) * min(1.0, value / highest))
            for i, value in enumerate(values)
        ]

    for values, colour, width in ((losses, PALE, 1), (mean, INK, 2)):
        if len(values) > 1:
            pen.line(points(values), colour, width)
    pen.text((left + 4, top + 2), f"loss {highest:.3g}; pale raw, dark mean of 25 steps", "black")
    pen.text((left + 4, bottom - CAPTION + 2), "0", "black")
    pen.text((right - 48, bottom - CAPTION + 2), f"{len(losses)}", "black")


def _plain(text: str) -> str:
    """What Pillow's built-in letters can write."""
    return text.encode("latin-1", "replace").decode("latin-1")
