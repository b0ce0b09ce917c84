"""The files of a tuning: their paths, which tuning they belong to, and a lock for writing.

Files for artists are where the host's own nodes find them: loras/<name>.safetensors, embeddings/<name>.safetensors,
and, if a subject encoder was trained too, subject_encoders/<name>.safetensors.
Files for the pack are in the user folder's `__dreamtuner`, which the host's web server does not serve:
tuning/<name>/state.safetensors (for resuming, and for the report) and regular/<key>/ (the regular images).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import folder_paths

from ...files import metadata_of_file, plain_json, sweep
from ...lock import locked
from ...saved_subject import MOST_STEPS
from ...texts import checked_name
from ..encoder.load import ENCODERS
from ..files import SUFFIX, check_writable, place

SETTINGS = "dreamtuner.tuning"  # key of a file's metadata


def settings_of(path: Path) -> dict[str, Any]:
    """The settings of the tuning that made the file, from its metadata; empty without them."""
    settings = plain_json(metadata_of_file(path).get(SETTINGS))
    return settings if isinstance(settings, dict) else {}


def steps_of(path: Path) -> int:
    """The number of steps of the tuning that made the file; 0 without it in the metadata."""
    steps = settings_of(path).get("steps")
    return steps if type(steps) is int and 0 <= steps <= MOST_STEPS else 0


def own_folder() -> Path:
    return Path(folder_paths.get_user_directory()) / "__dreamtuner"


def regular_folder(key: str) -> Path:
    return own_folder() / "regular" / key


@dataclass(frozen=True)
class TuningFiles:
    """The paths of the tuning of that name. Each kind of file goes to the first of its folders, as in the host.

    with_encoder: whether a subject encoder is trained too.
    """

    name: str
    with_encoder: bool = False

    @property
    def lora(self) -> Path:
        return Path(folder_paths.get_folder_paths("loras")[0]) / f"{self.name}{SUFFIX}"

    @property
    def embedding(self) -> Path:
        return Path(folder_paths.get_folder_paths("embeddings")[0]) / f"{self.name}{SUFFIX}"

    @property
    def encoder(self) -> Path:
        return ENCODERS.folders()[0] / f"{self.name}{SUFFIX}"

    @property
    def state(self) -> Path:
        return own_folder() / "tuning" / self.name / f"state{SUFFIX}"

    @property
    def spare(self) -> Path:
        """A second path for the state, if the first cannot be written."""
        return self.state.with_name(f"state_spare{SUFFIX}")

    @property
    def result(self) -> list[Path]:
        """The files for artists."""
        return [self.lora, self.embedding, *([self.encoder] if self.with_encoder else [])]

    def words(self) -> str:
        """The files for artists, in words."""
        encoder = f", subject_encoders/{self.encoder.name}" if self.with_encoder else ""
        return f"loras/{self.lora.name}, embedding:{self.name}{encoder}"

    def check(self, key: str) -> None:
        """Raise ValueError if a folder is not writable, or if a file of that name is not from this tuning.

        key: of this tuning's settings. Files with the same key belong to this tuning.
        """
        paths = [*self.result, self.state, self.spare]
        for path in paths:
            check_writable(path.parent)
        if taken := [place(path) for path in paths if _is_of_another(path, key)]:
            raise ValueError(
                f"the name '{self.name}' is taken by another tuning or another file ({', '.join(taken)}); use another "
                f"name, such as '{self.free(key).name}', or set every input except `steps` as it was to go on with "
                "that tuning."
            )

    def free(self, key: str) -> TuningFiles:
        """The same name if no other tuning uses it, else the first free one of name_2, name_3, ..."""
        numbered = (replace(self, name=f"{self.name}_{number}") for number in itertools.count(2))
        return next(
            files
            for files in itertools.chain([self], numbered)
            if not any(_is_of_another(path, key) for path in (*files.result, files.state, files.spare))
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A lock on the name. Raises ValueError if another process holds it."""
        check_writable(self.state.parent)
        busy = (
            f"'{self.name}' is being tuned already, by this ComfyUI or another; wait until it ends, or use another "
            "name."
        )
        with locked(self.state.with_name("lock"), busy):
            for path in (*self.result, self.state, self.spare):
                sweep(path)  # nobody else writes these
            yield


def _is_of_another(path: Path, key: str) -> bool:
    """Whether there is a file (or a broken link or pipe) that this tuning did not write."""
    return os.path.lexists(path) and settings_of(path).get("key") != key


def is_to_be_written_again(name: str, steps: int) -> bool:
    """Whether the tuning of that name is finished, and one of its files was deleted since."""
    try:
        files = TuningFiles(checked_name(name))
    except ValueError:
        return False
    return steps_of(files.state) >= steps and not (files.lora.exists() and files.embedding.exists())
