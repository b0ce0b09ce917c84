"""The progress of a tuning: the host's progress bar with the newest sample, and a line with the time left."""

from __future__ import annotations

import time
from collections import deque

import comfy.utils
from PIL import Image
from torch import Tensor

from ...tuning.config import TuningConfig
from ..progress import say

PREVIEW_SIDE = 512  # pixels; the longer side of a preview
REGULAR_SHARE = 5  # about the time of one regular picture, in steps
RECENT = 20  # the newest steps, from which the time left is estimated


class Progress:
    """One bar for regular images and steps. node_id: the node that shows the text; None shows none."""

    def __init__(self, node_id: str | None, config: TuningConfig) -> None:
        self.node_id, self.steps = node_id, config.steps
        self.before_steps = REGULAR_SHARE * config.regular_pictures
        self.bar = comfy.utils.ProgressBar(self.before_steps + config.steps)
        self.times: deque[float] = deque(maxlen=RECENT + 1)
        self.last_shown: int | None = None

    def regular(self, done: int, of: int) -> None:
        """Report the number of finished regular images."""
        self.times.append(time.monotonic())
        self.bar.update_absolute(REGULAR_SHARE * done)
        self.say(f"regular picture {done} of {of}{self._left(of - done, ' for these')}")
        if done == of:
            self.times.clear()

    def step(self, step: int, loss: float, sample: Tensor | None) -> None:
        """Report the number of finished steps. sample: [3, h, w, 3] in 0..255, shown with the bar, or None."""
        self.times.append(time.monotonic())
        self.bar.update_absolute(self.before_steps + step, preview=_preview(sample))
        self.say(f"step {step} of {self.steps}, loss {loss:.4f}{self._left(self.steps - step)}")

    def say(self, text: str) -> None:
        """Show a line of text under the node."""
        say(text, self.node_id)

    def _left(self, count: int, of: str = "") -> str:
        """The time left, in words; by the median of the newest steps, because some also draw a sample or save."""
        if len(self.times) < 3 or count == 0:
            return ""
        gaps = sorted(later - earlier for earlier, later in zip(self.times, list(self.times)[1:], strict=False))
        seconds = round(gaps[len(gaps) // 2] * count)
        return f", {seconds // 60} min {seconds % 60} s left{of}" if seconds >= 60 else f", {seconds} s left{of}"


def _preview(sample: Tensor | None) -> tuple[str, Image.Image, int] | None:
    """The first image of the newest sample, in the form that the host sends to the page."""
    return None if sample is None else ("JPEG", Image.fromarray(sample[0].numpy()), PREVIEW_SIDE)
