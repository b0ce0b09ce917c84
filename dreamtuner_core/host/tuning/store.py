"""Writing a tuning's state and its files for artists.

If writing fails, neither the files on disk nor the training in memory are lost.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from ..files import File, place, read, write, write_together
from .files import TuningFiles, settings_of, steps_of
from .job import Job

SAMPLE_SEEDS = (1, 2)  # of the report's pictures of the subject; the first one also draws the plain class
REFUSALS = (ValueError, OSError, RuntimeError, MemoryError, TypeError)  # errors of a write; not an interrupt

log = logging.getLogger(__name__)


def stored_state(job: Job) -> dict[str, Tensor] | None:
    """The newest complete state on disk with the same settings, by tensor name; None without one."""
    paths = [path for path in (job.files.state, job.files.spare) if settings_of(path).get("key") == job.key]
    for path in sorted(paths, key=steps_of, reverse=True):
        if (found := read(path)) is not None:
            return found[0]
    return None


def store_state(job: Job, state: Mapping[str, Tensor], steps: int) -> bool:
    """Write the state: as usual, else without texts from outside, else to the second path.

    Returns False if all fail; the log has the reasons.
    """
    least = job.least_metadata(steps)
    for path, metadata in ((job.files.state, job.metadata(steps)), (job.files.state, least), (job.files.spare, least)):
        try:
            write(path, state, metadata)
        except REFUSALS as error:
            log.warning("DreamTuner: the state of '%s' after step %d: %s", job.files.name, steps, error)
            continue
        if path == job.files.spare:
            log.warning("DreamTuner: the state of '%s' is in %s instead", job.files.name, place(path))
        else:
            with suppress(OSError):
                job.files.spare.unlink(missing_ok=True)
        return True
    return False


class Learned(NamedTuple):
    """What was learned, for the artists' files. words: S*, [D] by text encoder. encoder: its tensors and metadata."""

    steps: int
    lora: Mapping[str, Tensor]
    words: Mapping[str, Tensor]
    encoder: tuple[Mapping[str, Tensor], Mapping[str, str]] | None


def store_result(job: Job, files: TuningFiles, learned: Learned) -> None:
    """Write the files for artists, all of them or none, in the layouts that the nodes read."""
    settings = job.metadata(learned.steps)
    phrase = f"{job.texts.class_word} embedding:{files.name}"
    words = {embedding_key(name, len(learned.words)): word[None] for name, word in learned.words.items()}  # [1, D]
    written = [File(files.embedding, words, settings)]
    if learned.encoder is not None:
        tensors, metadata = learned.encoder
        written.append(File(files.encoder, tensors, {**metadata, **settings}))
    named = {"modelspec.title": files.name, "modelspec.trigger_phrase": phrase}
    write_together([*written, File(files.lora, learned.lora, settings | named)])


def samples_of(state: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """The sample images in a state, by step: [3, h, w, 3] in 0..255."""
    found = {name.removeprefix("samples."): x for name, x in state.items() if name.startswith("samples.")}
    return {
        int(step): x
        for step, x in found.items()
        if step.isdecimal() and x.dtype == torch.uint8 and x.ndim == 4 and len(x) == 3 and x.shape[-1] == 3
    }


def embedding_key(name: str, encoders: int) -> str:
    """The key of that text encoder's word in an embedding file: its name if there are several encoders."""
    return "emb_params" if encoders == 1 else f"clip_{name}"
