"""What the nodes of the pack share: category, sockets, inputs, notes, and errors that begin with the node's name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..dreamtuner_core.picture.hints import NOTES

CATEGORY = "DreamTuner"
SubjectSocket = io.Custom("DREAMTUNER_SUBJECT")
SubjectEncoderSocket = io.Custom("DREAMTUNER_SUBJECT_ENCODER")


def schema(*, search_aliases: list[str], **of_node: Any) -> io.Schema:
    """A node's schema. search_aliases: words that the page's search finds it by, on hosts that know them."""
    if "search_aliases" in {field.name for field in fields(io.Schema)}:
        of_node["search_aliases"] = search_aliases
    return io.Schema(**of_node)


def advanced(*inputs: io.Input) -> list[io.Input]:
    """Mark inputs as advanced, so that the page folds them. By extra_dict, which every host passes to the page."""
    for one in inputs:
        one.extra_dict = {**(one.extra_dict or {}), "advanced": True}
    return list(inputs)


def percent_inputs() -> list[io.Input]:
    """The part of the sampling in which a node has an effect."""
    between: dict[str, Any] = {"min": 0.0, "max": 1.0, "step": 0.001}
    return [
        io.Float.Input("start_percent", default=0.0, **between, tooltip="When in the sampling it begins."),
        io.Float.Input("end_percent", default=1.0, **between, tooltip="When in the sampling it ends."),
    ]


def rights_inputs(multiline: bool = True) -> list[io.Input]:
    """The inputs of a subject's rights. multiline: False if they are folded, as a folded text area takes up space."""
    return [
        io.String.Input(
            "owner", default="", optional=True, tooltip="Who the person is, or who owns the character or mark."
        ),
        io.String.Input(
            "allowed_uses",
            default="",
            multiline=multiline,
            optional=True,
            tooltip="What they agreed to, in plain words.",
        ),
        io.String.Input(
            "until", default="", optional=True, tooltip="The last day of these uses, as 2030-12-31; empty means no end."
        ),
    ]


def shown(preview: Tensor, notes: Iterable[str]) -> dict[str, Any]:
    """The ui output of a node: the preview [1, H, W, 3], and notes (keys of hints.NOTES) in the page's language."""
    return ui.PreviewImage(preview).as_dict() | noted(notes)


def noted(notes: Iterable[str]) -> dict[str, Any]:
    """The notes alone."""
    notes = list(notes)
    return {"dreamtuner_notes": notes, "text": [NOTES[note] for note in notes]}


@contextmanager
def named_errors(node: str) -> Iterator[None]:
    """Begin every ValueError with the node's name, so that an artist knows where to look."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{node}: {error}") from error


def strings_of(prompt: Any) -> Iterator[str]:
    """The texts in a graph as it was queued; a caller may send anything, or None."""
    for node in prompt.values() if isinstance(prompt, dict) else ():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        yield from (value for value in (inputs.values() if isinstance(inputs, dict) else ()) if isinstance(value, str))
