"""What the nodes note on a model: one attachment under KEY, read when a run begins."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..guidance import Guidance
from ..subject import Subject
from .encoder.load import SubjectEncoding

KEY = "dreamtuner"


@dataclass(frozen=True, eq=False)
class AppliedSubject:
    """One subject at work. weight: w_ref. start, end: percent of sampling, 0..1. region: None or [1, H, W] in 0..1."""

    subject: Subject
    weight: float
    start: float = 0.0
    end: float = 1.0
    region: Tensor | None = None


@dataclass(frozen=True, eq=False)
class AppliedEncoder:
    """One encoded subject at work. strength: beta. start, end: percent of sampling, 0..1."""

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
    """What the nodes have noted on a model."""

    subjects: tuple[AppliedSubject, ...] = ()
    guidance: Guidance | None = None
    encoders: tuple[AppliedEncoder, ...] = ()
