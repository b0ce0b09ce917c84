"""The report: a plot of the loss, raw and smoothed, and below it the samples made during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from ..picture.letters import put
from ..picture.sheet import GAP, INK, PAPER, Cell, as_image, as_tensor, contact_sheet

WIDTH, PLOT_HEIGHT, CAPTION = 768, 240, 16
DARK, PALE, GRID = (20, 60, 160), (178, 196, 232), (228, 228, 228)


def smoothed(losses: Sequence[float], window: int = 25) -> list[float]:
    """The moving average of the last `window` losses (fewer at the beginning)."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(losses) + 1)
    begins = np.maximum(0, ends - window)
    return ((sums[ends] - sums[begins]) / (ends - begins)).tolist()


def report(title: str, losses: Sequence[float], samples: Mapping[int, Tensor], columns: Sequence[str]) -> Tensor:
    """The report as an image [1, H, W, 3] in 0..1.

    samples: by step, [len(columns), h, w, 3] in 0..255 (uint8). columns: the prompt of each sample.
    """
    plot = Image.new("RGB", (WIDTH, PLOT_HEIGHT + 3 * CAPTION), PAPER)
    pen = ImageDraw.Draw(plot)
    put(pen, (GAP, 2), title, 12, INK, WIDTH - 2 * GAP)
    _plot(pen, losses, (GAP, CAPTION + 2, WIDTH - GAP, CAPTION + PLOT_HEIGHT))
    if not samples:
        return as_tensor(plot)
    cells = [
        Cell(as_image(picture), f"step {step}", column)
        for step in sorted(samples)
        for picture, column in zip(samples[step], columns)
    ]
    sheet = contact_sheet(cells, columns=len(columns), side=(WIDTH - GAP) // len(columns) - GAP)
    page = Image.new("RGB", (WIDTH, plot.height + sheet.height), PAPER)
    page.paste(plot)
    page.paste(sheet, (0, plot.height))
    return as_tensor(page)


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

    for values, colour, width in ((losses, PALE, 1), (mean, DARK, 2)):
        if len(values) > 1:
            pen.line(points(values), colour, width)
    pen.text((left + 4, top + 2), f"loss {highest:.3g}; pale raw, dark mean of 25 steps", "black")
    pen.text((left + 4, bottom - CAPTION + 2), "0", "black")
    pen.text((right - 48, bottom - CAPTION + 2), f"{len(losses)}", "black")
