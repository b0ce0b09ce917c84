"""The rows of the table: how each makes its pictures, and what it is expected to show.

A row is one function, `make(model, clip, reference, prompts) -> (model, clip, prompts)`, that gets the plain model
and a subject's reference and gives what is to be sampled with. Whatever changes a model for a subject plugs in so:
the subject encoder, a tuning. Make it a frozen dataclass with a `__call__`: its repr is what kept results are known by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.measure.studio import Reference

Prompts = Sequence[str]
"""One for each picture: a subject's scenes share one sampling run."""
Made = tuple[Any, Any, Prompts]
Make = Callable[[Any, Any, Reference, Prompts], Made]

MORE, LESS, NO_LESS, NO_MORE = "more", "less", "no less", "no more"
PLAIN, FULL = "plain text", "w_ref 3"
BLOCKS = ("input", "middle", "output")


@dataclass(frozen=True)
class Expect:
    """`measure` is to be more, less, no less or no more than in another row. margin: what the last two forgive."""

    measure: str
    relation: str
    than: str = PLAIN
    margin: float = 0.0


@dataclass(frozen=True)
class Row:
    """One way to make pictures.

    denoise: below 1, sampling starts from the reference's own picture. true: no model draws; true pictures of the
    subject go through the autoencoder. slow: only when asked for by name.
    """

    name: str
    group: str
    make: Make
    expects: tuple[Expect, ...] = ()
    denoise: float = 1.0
    true: bool = False
    slow: bool = False
    quick: bool = False


@dataclass(frozen=True)
class Plain:
    """The prompt alone."""

    def __call__(self, model: Any, clip: Any, reference: Reference, prompts: Prompts) -> Made:
        return model, clip, prompts


@dataclass(frozen=True)
class WithSubject:
    """Self-subject attention, and reference guidance (w_r, p_r, dt, dt') where it is given."""

    weight: float = 3.0
    masked: bool = True
    start: float = 0.0
    end: float = 1.0
    caption: str = "concise"
    change: str | None = None
    blocks: tuple[str, ...] = BLOCKS
    guidance: tuple[float, float, float, float] | None = None

    def __call__(self, model: Any, clip: Any, reference: Reference, prompts: Prompts) -> Made:
        core = reference.studio.core
        if set(self.blocks) != set(BLOCKS):
            from lab.measure.peers import reading_only

            model = reading_only(model, core, self.blocks)
        subject = reference.subject(self.masked, self.caption, self.change)
        model = core.host.apply.apply_subject(model, subject, self.weight, self.start, self.end)
        if self.guidance is not None:
            model = core.host.apply.apply_guidance(model, core.guidance.Guidance(*self.guidance))
        return model, clip, prompts


@dataclass(frozen=True)
class WithEncoder:
    """A subject encoder of the mini base at strength beta; then self-subject attention at w_ref, where that is not 0.

    digest: of the encoder's file, so that kept results are those of this very encoder.
    """

    path: Path = field(repr=False)
    digest: str
    strength: float = 0.2
    weight: float = 0.0

    def __call__(self, model: Any, clip: Any, reference: Reference, prompts: Prompts) -> Made:
        apply, subject = reference.studio.core.host.apply, reference.encoded(self.path)
        model = apply.apply_encoder(model, subject, self.strength, 0.0, 1.0)
        return (apply.apply_subject(model, subject, self.weight) if self.weight else model), clip, prompts
