"""What a tuning writes as it goes: its state, and what an artist uses.

A write that fails costs nothing: neither what stands on disk, nor what is learned and still in memory.
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

SAMPLE_SEEDS = (1, 2)  # of the report's pictures of the subject; the first one also draws the bare class
REFUSALS = (ValueError, OSError, RuntimeError, MemoryError, TypeError)  # of a write; an interrupt is none of them

log = logging.getLogger(__name__)


def stored_state(job: Job) -> dict[str, Tensor] | None:
    """The furthest whole state on disk of these very settings."""
    paths = [path for path in (job.files.state, job.files.spare) if settings_of(path).get("key") == job.key]
    for path in sorted(paths, key=steps_of, reverse=True):
        if (found := read(path)) is not None:
            return found[0]
    return None


def store_state(job: Job, state: Mapping[str, Tensor], steps: int) -> bool:
    """Write the state: under its name, else without the texts from outside, else under the spare name.

    False where none could be written, and then the log says why.
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
    """What an artist uses of a tuning. words: S*, [D] by text encoder. encoder: tensors and metadata of its file."""

    steps: int
    lora: Mapping[str, Tensor]
    words: Mapping[str, Tensor]
    encoder: tuple[Mapping[str, Tensor], Mapping[str, str]] | None


def store_result(job: Job, files: TuningFiles, learned: Learned) -> None:
    """All that an artist uses, or nothing of it: in the layouts that the nodes read."""
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
    """The sample pictures in a state, by step: [3, h, w, 3] in 0..255."""
    found = {name.removeprefix("samples."): x for name, x in state.items() if name.startswith("samples.")}
    return {
        int(step): x
        for step, x in found.items()
        if step.isdecimal() and x.dtype == torch.uint8 and x.ndim == 4 and len(x) == 3 and x.shape[-1] == 3
    }


def embedding_key(name: str, encoders: int) -> str:
    """What an embedding's file calls the word of that text encoder: by the encoder where there are several."""
    return "emb_params" if encoders == 1 else f"clip_{name}"
