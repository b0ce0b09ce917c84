"""What every node of the pack shares: its category, its sockets, and how it says that an input is wrong."""

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
    """Inputs that the page folds away until they are asked for. All hosts hand this on; newer ones know it by name."""
    for one in inputs:
        one.extra_dict = {**(one.extra_dict or {}), "advanced": True}
    return list(inputs)


def rights_inputs(multiline: bool = True) -> list[io.Input]:
    """Whose a subject is; the same wherever it is said. multiline: folded away, a text area would still take room."""
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
            "until", default="", optional=True, tooltip="The last day of it, as 2030-12-31; empty has no end."
        ),
    ]


def shown(preview: Tensor, notes: Iterable[str]) -> dict[str, Any]:
    """What the page shows on the node itself: the preview, and notes (keys of hints.NOTES) in the page's language."""
    return ui.PreviewImage(preview).as_dict() | noted(notes)


def noted(notes: Iterable[str]) -> dict[str, Any]:
    """The notes alone."""
    notes = list(notes)
    return {"dreamtuner_notes": notes, "text": [NOTES[note] for note in notes]}


@contextmanager
def named_errors(node: str) -> Iterator[None]:
    """Put the node's name before what went wrong, so that an artist knows where to look."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{node}: {error}") from error


def strings_of(prompt: Any) -> Iterator[str]:
    """The texts in a graph as it was queued; a caller may send anything, or none."""
    for node in prompt.values() if isinstance(prompt, dict) else ():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        yield from (value for value in (inputs.values() if isinstance(inputs, dict) else ()) if isinstance(value, str))
