"""Saving and loading subjects: the files in models/subjects."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch

from ...files import Taken
from ...rights import OwnedSubject, Rights
from ...saved_subject import SavedSubject, saved
from ...subject import Subject
from ...subject_file import from_file, to_file
from ...texts import checked_name, shown
from ...tuned_subject import TunedSubject
from .. import fingerprint
from ..encoder.load import LoadedEncoder, SubjectEncoding
from ..files import SUFFIX, ModelFolder, file_hash, read, write
from ..tuning.files import TuningFiles
from .rights import NO_RIGHTS

SUBJECTS = ModelFolder("subjects")
NUMBERED = 1000  # files of one name

log = logging.getLogger(__name__)


def save_subject(
    subject: Subject, name: str, tuned: TunedSubject | None = None, rights: Rights = NO_RIGHTS, caption_text: str = ""
) -> Path:
    """Save the subject and return the file. If another subject has the name, a number is added, as the host does.

    tuned: the tuning of this same subject. Raises ValueError for an invalid name, or if the file cannot be written.
    """
    name = checked_name(name)
    if tuned is not None and not torch.equal(tuned.subject.latent.cpu(), subject.latent.cpu()):
        raise ValueError("the tuned_subject was tuned on another subject; link the subject that it was tuned on.")
    if tuned is not None and tuned.subject.encoding is not None:  # by the encoder that learned with it
        subject = subject.encoded(tuned.subject.encoding)
    if rights == NO_RIGHTS and isinstance(subject, OwnedSubject):
        rights = subject.rights
    encoder = "" if subject.encoding is None else fingerprint.of_network(subject.encoding.encoder.model)
    tensors, metadata = to_file(saved(subject, tuned, rights, caption_text, encoder))
    folder = SUBJECTS.folders()[0]
    for number in range(1, NUMBERED):
        path = folder / f"{name if number == 1 else f'{name}_{number:05}'}{SUFFIX}"
        if not os.path.lexists(path):
            with suppress(Taken):  # another ComfyUI may save one of that name meanwhile
                write(path, tensors, metadata, new=True)
                return path
        found = read(path)
        if found is not None and found[1] == metadata and _same(found[0], tensors):
            return path
    raise ValueError(f"there are {NUMBERED} subjects of the name '{name}' already; take another name.")


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def load_subject(name: str, encoder: LoadedEncoder | None = None) -> tuple[OwnedSubject, TunedSubject | None]:
    """Load the subject, with exactly the effect that it had, and its tuning (None if it was not tuned).

    encoder: the subject encoder that made the file's tokens; without it the subject has no encoding. Raises ValueError
    for a damaged file, or for another encoder.
    """
    content = from_file(SUBJECTS.path(name))
    own: dict[str, Any] = {
        "name": name.removesuffix(SUFFIX),
        "rights": content.rights,
        "caption_text": content.caption_text,
    }
    whole = OwnedSubject(**_picture(content), **own, views=tuple(Subject(**_picture(view)) for view in content.views))
    subject = cast(OwnedSubject, whole.encoded(_encoding(content, encoder)))
    if content.tuning is None:
        return subject, None
    tuned = TunedSubject(subject, **content.tuning, words=content.words)
    _look_for_lora(tuned)
    return subject, tuned


def _picture(content: SavedSubject) -> dict[str, Any]:
    """One image of a subject, as arguments of Subject."""
    return {
        "picture": content.picture,
        "mask": content.mask,
        "latent": content.latent,
        "caption": content.caption and [[content.caption[0], {"pooled_output": content.caption[1]}]],
        "noise_seed": content.noise_seed,
    }


def _encoding(content: SavedSubject, encoder: LoadedEncoder | None) -> SubjectEncoding | None:
    if content.encoding is None:
        return None
    if encoder is None:
        name = shown(content.encoder_name)
        log.warning("DreamTuner: the subject was encoded with '%s', which is not linked", name)
        return None
    if encoder.name != content.encoder_name:
        raise ValueError(
            f"the subject was encoded with '{shown(content.encoder_name)}', but the linked subject_encoder is "
            f"'{encoder.name}'; link the one that it was encoded with, or none."
        )
    if content.encoder_identity not in ("", fingerprint.of_network(encoder.model)):
        raise ValueError(
            f"'{encoder.name}' is not the file any more that the subject was encoded with; put that one back, encode "
            "the picture again, or link none."
        )
    return SubjectEncoding(encoder, *content.encoding)


def _look_for_lora(tuned: TunedSubject) -> None:
    """Log a warning if the tuned subject's LoRA is missing or was replaced."""
    path = TuningFiles(tuned.name).lora
    if not path.is_file():
        log.warning("DreamTuner: the LoRA '%s' of this subject is not in models/loras", tuned.name)
    elif _hash_of(path) != tuned.lora_hash:
        log.warning("DreamTuner: loras/%s is not the file that this subject was saved with", path.name)


def _hash_of(path: Path) -> str:
    """The file's hash; empty if it cannot be read."""
    try:
        return file_hash(path)
    except OSError:
        return ""
