"""What the quality gate says of a batch: who passed, in which order, as figures and as a sheet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..picture.sheet import Cell, as_image, as_tensor, contact_sheet
from .scores import Limits, Score, ranking

COLUMNS, SIDE = 5, 240  # of the sheet


@dataclass(frozen=True)
class Gate:
    """The pictures' figures, in the batch's order, and the order itself, best first."""

    scores: list[Score]
    limits: Limits
    measured_by: str

    @property
    def order(self) -> list[int]:
        return ranking(self.scores, self.limits)

    @property
    def accepted(self) -> list[int]:
        return [i for i in self.order if not self.scores[i].failures(self.limits)]

    @property
    def rejected(self) -> list[int]:
        return [i for i in self.order if self.scores[i].failures(self.limits)]

    def figures(self, of: Sequence[int]) -> list[dict[str, Any]]:
        """Plain values of those pictures. picture and rank count from 1."""
        return [self._figures(i) for i in of]

    def _figures(self, i: int) -> dict[str, Any]:
        score = self.scores[i]
        failures = score.failures(self.limits)
        told = {"picture": i + 1, "rank": self.order.index(i) + 1, "passed": not failures, "failures": failures}
        measured = {name: round(x, 4) if isinstance(x, float) else x for name, x in vars(score).items()}
        return told | measured | {"faults": list(score.faults)}

    def as_json(self) -> str:
        asked = {f"min_{name}": value for name, value in vars(self.limits).items()}
        told = {"likeness_by": self.measured_by, **asked, "pictures": self.figures(self.order)}
        return json.dumps(told, indent=1)

    def sheet(self, images: Tensor, reference: Tensor) -> Tensor:
        """[1, H, W, 3]: the reference, then the pictures, best first."""
        cells = [Cell(as_image(reference), "reference", f"likeness by {self.measured_by}")]
        for told, i in zip(self.figures(self.order), self.order):
            what = told["failures"] or told["faults"] or [f"sharp {told['sharpness']:.2f}, colour {told['colour']:.2f}"]
            text = "" if told["text"] is None else f", text {told['text']:.2f}"
            label = f"{told['rank']}. picture {i + 1}, likeness {told['likeness']:.3f}{text}"
            cells.append(Cell(as_image(images[i]), label, ", ".join(what), told["passed"]))
        title = f"{len(self.accepted)} of {len(images)} passed"
        return as_tensor(contact_sheet(cells, title, min(COLUMNS, len(cells)), SIDE))
