"""The quality gate's result for a batch: which pictures passed and their order, as figures and as a sheet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..picture.sheet import Cell, as_image, as_tensor, contact_sheet
from .scores import Limits, Score, ranking

COLUMNS, SIDE = 5, 240  # of the sheet; SIDE in pixels


@dataclass(frozen=True)
class Gate:
    """The figures of each picture, in the batch's order. measured_by: the image tower, or the model's own keys."""

    scores: list[Score]
    limits: Limits
    measured_by: str

    @property
    def order(self) -> list[int]:
        """Indices of all pictures, best first."""
        return ranking(self.scores, self.limits)

    @property
    def accepted(self) -> list[int]:
        """Those that passed, best first."""
        return [i for i in self.order if not self.scores[i].failures(self.limits)]

    @property
    def rejected(self) -> list[int]:
        """Those that failed, best first."""
        return [i for i in self.order if self.scores[i].failures(self.limits)]

    def figures(self, of: Sequence[int]) -> list[dict[str, Any]]:
        """The figures of those pictures as plain values. picture and rank count from 1."""
        return [self._figures(i) for i in of]

    def _figures(self, i: int) -> dict[str, Any]:
        score = self.scores[i]
        failures = score.failures(self.limits)
        verdict = {"picture": i + 1, "rank": self.order.index(i) + 1, "passed": not failures, "failures": failures}
        measured = {name: round(x, 4) if isinstance(x, float) else x for name, x in vars(score).items()}
        return verdict | measured | {"faults": list(score.faults)}

    def as_json(self) -> str:
        """The limits, and the figures of all pictures, best first, as JSON."""
        limits = {f"min_{name}": value for name, value in vars(self.limits).items()}
        content = {"likeness_by": self.measured_by, **limits, "pictures": self.figures(self.order)}
        return json.dumps(content, indent=1)

    def sheet(self, images: Tensor, reference: Tensor) -> Tensor:
        """A sheet [1, H', W', 3]: the reference [h, w, 3], then the images [B, H, W, 3], best first; all in 0..1."""
        cells = [Cell(as_image(reference), "reference", f"likeness by {self.measured_by}")]
        for of, i in zip(self.figures(self.order), self.order):
            what = of["failures"] or of["faults"] or [f"sharp {of['sharpness']:.2f}, colour {of['colour']:.2f}"]
            text = "" if of["text"] is None else f", text {of['text']:.2f}"
            label = f"{of['rank']}. picture {i + 1}, likeness {of['likeness']:.3f}{text}"
            cells.append(Cell(as_image(images[i]), label, ", ".join(what), of["passed"]))
        title = f"{len(self.accepted)} of {len(images)} passed"
        return as_tensor(contact_sheet(cells, title, min(COLUMNS, len(cells)), SIDE))
