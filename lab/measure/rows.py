"""The rows of the table: how each makes its pictures, and what it is expected to show.

A row is one function, `make(model, clip, reference, prompts) -> (model, clip, prompts)`, that gets the plain model
and a subject's reference and gives what is to be sampled with. Whatever changes a model for a subject plugs in so.
Make it a frozen dataclass with a `__call__`: its repr is what kept results are known by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from lab.demo import ENCODER
from lab.measure.studio import Reference

Prompts = Sequence[str]
"""One for each picture: what is asked of a subject shares one sampling run."""
Made = tuple[Any, Any, Prompts]
Make = Callable[[Any, Any, Reference, Prompts], Made]

MORE, LESS, NO_LESS, NO_MORE = "more", "less", "no less", "no more"
PLAIN, TRUE, CHANCE, ATTENTION, ALL, TUNED = (
    "plain text", "true pictures", "chance", "S-S-A", "S-S-A + encoder + guidance", "tuned",
)  # fmt: skip
BLOCKS = ("input", "middle", "output")
SAME, OTHER = "same", "other"  # who is in a row of true pictures


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
    same individual, or of another of its kind, go through the autoencoder. most: of individuals, for what is slow.
    """

    name: str
    group: str
    make: Make
    expects: tuple[Expect, ...] = ()
    denoise: float = 1.0
    true: str = ""
    most: int = 1000
    quick: bool = False


@dataclass(frozen=True)
class Plain:
    """The prompt alone."""

    def __call__(self, model: Any, clip: Any, reference: Reference, prompts: Prompts) -> Made:
        return model, clip, prompts


@dataclass(frozen=True)
class Guided:
    """Reference guidance: w_r, p_r, dt, dt'."""

    scale: float = 1.5
    probability: float = 0.2
    dt: float = 0.0
    dt_uncond: float = 0.0


@dataclass(frozen=True)
class WithSubject:
    """The pack's own chapters: self-subject attention, reference guidance, and the subject encoder at `encoder`.

    weight: w_ref; 0 leaves self-subject attention out. negative: the unwanted side's share of it. found: the subject's
    mask is found in the picture, and not the true one.
    """

    weight: float = 3.0
    negative: float = 1.0
    guidance: Guided | None = None
    encoder: float = 0.0
    masked: bool = True
    start: float = 0.0
    end: float = 1.0
    caption: str = "concise"
    change: str | None = None
    light: str = "as it is"
    found: bool = False
    blocks: tuple[str, ...] = BLOCKS
    file: Path = field(default=ENCODER, repr=False)

    def __call__(self, model: Any, clip: Any, reference: Reference, prompts: Prompts) -> Made:
        core = reference.studio.core
        if set(self.blocks) != set(BLOCKS):
            model = reading_only(model, core, self.blocks)
        if self.encoder:
            model = core.host.apply.apply_encoder(model, reference.encoded(self.file), self.encoder)
        if self.weight:
            subject = reference.subject(self.masked, self.caption, self.change, self.light, self.found)
            span, negative = (self.start, self.end), self.negative
            model = core.host.apply.apply_subject(model, subject, self.weight, *span, negative_weight=negative)
        if self.guidance is not None:
            g = self.guidance
            guidance = core.guidance.Guidance(g.scale, g.probability, g.dt, g.dt_uncond)
            model = core.host.apply.apply_guidance(model, guidance)
        return model, clip, prompts


def reading_only(model: Any, core: Any, blocks: Sequence[str]) -> Any:
    """A clone in which self-subject attention happens in some blocks only: of input, middle and output.

    The pack has no such setting. To be called before the subject is applied: its wrapper then lies around the pack's.
    """
    from comfy.patcher_extension import WrappersMP

    sampling = core.host.sampling.run
    every = sampling.self_attentions

    def some(patcher: Any) -> dict[Any, Any]:
        return {layer: block for layer, block in every(patcher).items() if layer.block in blocks}

    def around(executor: Any, *args: Any, **kwargs: Any) -> Any:
        with mock.patch.object(sampling, "self_attentions", some):
            return executor(*args, **kwargs)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "lab blocks", around)
    return patched
