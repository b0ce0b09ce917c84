"""What every node of the pack shares: its category, its sockets, and how it says that an input is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from comfy_api.latest import io

CATEGORY = "DreamTuner"
SubjectSocket = io.Custom("DREAMTUNER_SUBJECT")
SubjectEncoderSocket = io.Custom("DREAMTUNER_SUBJECT_ENCODER")


@contextmanager
def named_errors(node: str) -> Iterator[None]:
    """Put the node's name before what went wrong, so that an artist knows where to look."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{node}: {error}") from error
