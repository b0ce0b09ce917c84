"""How much two pictures show the same individual, wherever it stands: five measures, and what each reads when it must.

Every measure is calibrated on the artwork itself, so that it reads the same whatever its own scale is:
1 for the same drawing placed anew on the asked scene, 0 for another concept there; the same concept in another
drawing lies between, and is reported as `mid`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lab.measure.eye import GRID, Eye, Sight, as_floats
from lab.measure.subjects import Look, artwork, training_looks

ANCHORS, SAME, OTHER = (0, 1, 2), (500, 501, 502), (900,)  # seeds of true pictures
CROP = 64  # side that a subject's crop is brought to
CELLS, ORIENTATIONS = 8, 8  # of the edges' histograms
BINS = 4  # a channel, of the colours' histogram
SHIFT = 5  # pixels of the crop that detail may be moved by to fit


def identity(a: Sight, b: Sight) -> float:
    """Cosine of the network's pooled features."""
    return float((a.pooled * b.pooled).sum())


def patches(a: Sight, b: Sight) -> float:
    """How well each spot of b's subject is found anywhere in a: mean of the best cosine."""
    inside = F.adaptive_avg_pool2d(b.subject[:, None], 14).flatten() > 0.5
    if not inside.any():
        return 0.0
    return float((b.patches[0, inside] @ a.patches[0].T).amax(1).mean())


def colour(a: Sight, b: Sight) -> float:
    """Shared part of the subjects' colour histograms, 0..1."""
    return float(torch.minimum(_histogram(a), _histogram(b)).sum())


def edges(a: Sight, b: Sight) -> float:
    """Cosine of histograms of oriented gradients of the subjects' crops, or of one mirrored, if that is nearer."""
    crop, other = _grey_crop(a), _oriented(_grey_crop(b))
    return max(float((_oriented(x) * other).sum()) for x in (crop, crop.flip(-1)))


def detail(a: Sight, b: Sight) -> float:
    """Correlation of the high frequencies inside the subjects' crops, after the mirroring and shift that fit best."""
    crop, other = _high(_grey_crop(a)), _high(_grey_crop(b))
    return max(_best_correlation(x, other) for x in (crop, crop.flip(-1)))


Measure = Callable[[Sight, Sight], float]
MEASURES: dict[str, Measure] = {f.__name__: f for f in (identity, patches, colour, edges, detail)}


@dataclass(frozen=True)
class Scale:
    """Raw figures of one subject on one scene, by measure: another concept, the same concept, the same drawing."""

    low: dict[str, float]
    mid: dict[str, float]
    high: dict[str, float]


class Likeness:
    """Calibrated likeness to the subjects of one table."""

    def __init__(self, eye: Eye, cells: Sequence[tuple[Look, str]]) -> None:
        self.eye = eye
        self.scales = {cell: self._scale(*cell) for cell in cells}
        self.spans = {
            name: float(np.mean([s.high[name] - s.low[name] for s in self.scales.values()])) for name in MEASURES
        }

    def score(self, sight: Sight, look: Look, scene: str) -> dict[str, float]:
        """Each measure of one picture, asked for as that individual on that scene: about 0..1."""
        raw, low = self._raw(sight, look, scene), self.scales[look, scene].low
        return {name: (raw[name] - low[name]) / self.spans[name] for name in MEASURES}

    def calibration(self) -> dict[str, dict[str, float]]:
        """What each kind of true picture reads; 0 and 1 are so by definition."""
        mids = {n: np.mean([s.mid[n] - s.low[n] for s in self.scales.values()]) / self.spans[n] for n in MEASURES}
        return {name: {"another concept": 0.0, "same concept": float(mids[name]), "same drawing": 1.0} for name in mids}

    def _scale(self, look: Look, scene: str) -> Scale:
        strangers = [other for other in training_looks()[::4] if other.concept != look.concept]
        kin = [Look(*key) for key in artwork() if key[0] == look.concept and key[1] != look.drawing]
        if look.drawing.startswith("fluent"):
            kin = [other for other in kin if not other.drawing.startswith("fluent")]
        low = Sight.join([self.eye.views(other, scene, OTHER) for other in strangers])
        mid = Sight.join([self.eye.views(other, scene, OTHER) for other in kin])
        high = self.eye.views(look, scene, SAME)
        return Scale(*(self._raw(sight, look, scene) for sight in (low, mid, high)))

    def _raw(self, sight: Sight, look: Look, scene: str) -> dict[str, float]:
        anchors = self.eye.views(look, scene, ANCHORS)
        pairs = [(sight[i], anchors[j]) for i in range(len(sight)) for j in range(len(anchors))]
        return {name: float(np.mean([measure(*pair) for pair in pairs])) for name, measure in MEASURES.items()}


# --- a subject's crop ----------------------------------------------------------------------------------------------


def box(subject: Tensor) -> tuple[int, int, int, int]:
    """(top, bottom, left, right), in cells of [G, G], that hold all but the outermost 2 % of a subject's mask."""
    solid = (subject > 0.5).float()
    if solid.sum() < 4:
        return 0, subject.shape[0], 0, subject.shape[1]
    ends = []
    for sums in (solid.sum(1), solid.sum(0)):
        share = sums.cumsum(0) / sums.sum()
        ends += [int((share < 0.02).sum()), int((share < 0.98).sum()) + 1]
    return ends[0], ends[1], ends[2], ends[3]


def _grey_crop(sight: Sight) -> Tensor:
    """[2, 64, 64]: the brightness of the subject's box, and the mask in it."""
    grey = as_floats(sight.pixels[0]).mean(-1)
    mask = F.interpolate(sight.subject[None], grey.shape, mode="bilinear")[0, 0]
    top, bottom, left, right = (round(edge * grey.shape[0] / GRID) for edge in box(sight.subject[0]))
    crop = torch.stack([grey, (mask > 0.5).float()])[:, top:bottom, left:right]
    return F.interpolate(crop[None], [CROP] * 2, mode="bilinear", antialias=True)[0]


def _oriented(crop: Tensor) -> Tensor:
    """[8, 8, 8] histograms of gradient directions, of length one."""
    grey = crop[0] * crop[1] + 0.5 * (1 - crop[1])
    dy, dx = torch.gradient(grey)
    size, angle = torch.hypot(dx, dy), torch.atan2(dy, dx) % torch.pi
    bins = F.one_hot((angle / torch.pi * ORIENTATIONS).long().clamp(max=ORIENTATIONS - 1), ORIENTATIONS)
    cells = F.avg_pool2d((bins * size[..., None]).movedim(-1, 0), CROP // CELLS)
    return F.normalize(cells.flatten(), dim=0)


def _high(crop: Tensor) -> Tensor:
    """What a blur takes away, inside the subject's mask."""
    grey, mask = crop[:1], crop[1:]
    size, pad = 9, 4
    weight = F.avg_pool2d(mask[None], size, 1, pad)[0].clamp(min=1e-3)
    blurred = F.avg_pool2d((grey * mask)[None], size, 1, pad)[0] / weight
    inner = -F.max_pool2d(-mask[None], 5, 1, 2)[0]  # not the outline: that is `edges`
    return ((grey - blurred) * inner)[0]


def _best_correlation(a: Tensor, b: Tensor) -> float:
    """Largest normalised correlation of [64, 64] over shifts of at most SHIFT pixels."""
    product = torch.fft.irfft2(torch.fft.rfft2(a) * torch.fft.rfft2(b).conj(), a.shape)
    near = torch.cat([product[:, : SHIFT + 1], product[:, -SHIFT:]], dim=1)
    near = torch.cat([near[: SHIFT + 1], near[-SHIFT:]])
    return float(near.max() / (a.norm() * b.norm()).clamp(min=1e-6))


def _histogram(sight: Sight) -> Tensor:
    """[4, 4, 4] shares of the subject's colours, each colour spread over the eight bins around it."""
    pixels = as_floats(sight.pixels[0])
    mask = F.interpolate(sight.subject[None], pixels.shape[:2], mode="bilinear")[0, 0] > 0.5
    colours = pixels[mask] if mask.any() else pixels.flatten(0, 1)
    at = colours * (BINS - 1)
    weights = (1 - (at[..., None] - torch.arange(BINS)).abs()).clamp(min=0)  # [N, 3, 4]
    counts = torch.einsum("ni,nj,nk->ijk", *weights.unbind(1))
    return counts / counts.sum()
