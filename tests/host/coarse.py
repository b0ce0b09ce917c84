"""Subject encoders of every kind and family, and subjects encoded with them. Ask for the fixture `encoder_files`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher
from dreamtuner_pack.dreamtuner_core.host.encoder.load import LoadedEncoder, encode_picture
from dreamtuner_pack.nodes.subject_encoder import ApplySubjectEncoder, LoadSubjectEncoder
from families import SHAPES
from graph import soft_mask, subject
from plain_encoder import FILES, file_name, tiny_clip


@contextmanager
def encoder_folder(path: Path) -> Iterator[Path]:
    """A folder of subject encoders, as extra_model_paths.yaml would add it."""
    for family in SHAPES:
        for kind, write in FILES.items():
            write(path / file_name(kind, family), family)
    known = dict(folder_paths.folder_names_and_paths)
    folder_paths.add_model_folder_path("subject_encoders", str(path))
    try:
        yield path
    finally:
        loaded.cache_clear()
        coarse_subject.cache_clear()
        folder_paths.folder_names_and_paths.clear()
        folder_paths.folder_names_and_paths.update(known)


@cache
def loaded(kind: str, family: str) -> LoadedEncoder:
    return LoadSubjectEncoder.execute(file_name(kind, family), tiny_clip()).args[0]


@cache
def coarse_subject(kind: str = "own tower", family: str = "sd1", seed: int = 9) -> Any:
    """A subject as Encode Subject Image gives it with that encoder linked; its latent is random."""
    one = subject(family, soft_mask(), seed)
    return replace(one, encoding=encode_picture(loaded(kind, family), one.picture))


def fresh(kind: str = "own tower", family: str = "sd1", seed: int = 9) -> Any:
    """The same with nothing kept of it yet."""
    return replace(subject(family, soft_mask(), seed), encoding=coarse_subject(kind, family, seed).encoding)


def bring(
    model: ModelPatcher, subject: Any | None = None, strength: float = 0.5, start: float = 0.0, end: float = 1.0
) -> ModelPatcher:
    """Apply Subject Encoder."""
    return ApplySubjectEncoder.execute(model, subject or coarse_subject(), strength, start, end).args[0]
