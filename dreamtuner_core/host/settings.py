"""The settings that the nodes store on a model: one attachment under KEY, read when a run begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from ..guidance import Guidance
from ..subject import Subject
from .encoder.load import SubjectEncoding

KEY = "dreamtuner"
REFERENCE_WEIGHT, NEGATIVE_WEIGHT = 1.0, 0.0
"""The nodes' defaults: w_ref, and the negative side's share of it. Measured in docs/measure (the paper: 3 on both)."""
BLOCKS = ("input", "middle", "output")  # of the U-Net


class NoiseRange(NamedTuple):
    """The noise levels (sigma) at which something is applied, from the first to the last."""

    first: float
    last: float

    @classmethod
    def of(cls, applied: AppliedSubject | AppliedEncoder, model_sampling: Any) -> NoiseRange:
        return cls(*(float(model_sampling.percent_to_sigma(percent)) for percent in (applied.start, applied.end)))

    def holds(self, sigma: float) -> bool:
        return self.last <= sigma <= self.first


@dataclass(frozen=True, eq=False)
class AppliedSubject:
    """One subject applied to a model.

    weight: w_ref. start, end: when it is applied, 0..1 of sampling. region: None or [1 or B, H, W] in 0..1.
    negative_weight: the share of w_ref, 0..1, for the negative side of guidance; 1 is Eq. 5 with dt' = 0.
    end_weight: w_ref at `end`, interpolated linearly from `weight` at `start`; None keeps it constant.
    blocks: the parts of the U-Net whose self-attentions read it.
    """

    subject: Subject
    weight: float
    start: float = 0.0
    end: float = 1.0
    region: Tensor | None = None
    negative_weight: float = 1.0
    end_weight: float | None = None
    blocks: tuple[str, ...] = BLOCKS

    def weight_at(self, percent: float) -> float:
        """w_ref at that point of sampling, 0..1."""
        if self.end_weight is None:
            return self.weight
        way = min(max((percent - self.start) / max(self.end - self.start, 1e-6), 0.0), 1.0)
        return self.weight + way * (self.end_weight - self.weight)

    def of_each_picture(self) -> list[AppliedSubject]:
        """Its images, each with an equal share of the weight, so that their sum in Eq. 3 is that of one subject."""
        pictures = self.subject.pictures()
        end = None if self.end_weight is None else self.end_weight / len(pictures)
        return [replace(self, subject=p, weight=self.weight / len(pictures), end_weight=end) for p in pictures]


@dataclass(frozen=True, eq=False)
class AppliedEncoder:
    """One encoded subject applied to a model. strength: beta. start, end: when, 0..1 of sampling."""

    subject: Subject
    strength: float
    start: float = 0.0
    end: float = 1.0

    @property
    def encoding(self) -> SubjectEncoding:
        assert self.subject.encoding is not None
        return self.subject.encoding


@dataclass(frozen=True, eq=False)
class Settings:
    """Everything that the nodes have stored on a model."""

    subjects: tuple[AppliedSubject, ...] = ()
    guidance: Guidance | None = None
    encoders: tuple[AppliedEncoder, ...] = ()
