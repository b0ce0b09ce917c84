"""Files of a tuning: names that stay in their folder, writing whole or not at all, and where everything lies.

What an artist uses lies where the host's own nodes look: loras/<name>.safetensors and embeddings/<name>.safetensors,
and, where a subject encoder learned too, subject_encoders/<name>.safetensors.
What only the pack uses lies under the user folder's `__dreamtuner`, a name that the host's web server gives to nobody:
tuning/<name>/state.safetensors (to go on from, and the report) and regular/<key>/ (the regular pictures).
"""

from __future__ import annotations

import errno
import hashlib
import json
import tempfile
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import write_whole
from .model_folders import SUFFIX
from .subject_encoder import ENCODERS

FORBIDDEN = set('/\\<>:"|?*,()[]{}')  # what folders, Windows or a prompt's own grammar take for something else
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in (*range(10), "¹", "²", "³"))}
LONGEST_NAME = 100  # bytes, as the file systems count
SETTINGS = "dreamtuner.tuning"  # key of a file's metadata


def checked_name(name: str, what: str = "name") -> str:
    """The name of a file to be, in one spelling. Raises ValueError for one that is no plain file name.

    Letters of any language are welcome; no spaces, for `embedding:<name>` ends at the first one in a prompt.
    """
    name = unicodedata.normalize("NFC", name.strip())
    why = ""
    if not name:
        why = "is empty"
    elif set(name) & FORBIDDEN:
        why = f"must not contain {' '.join(sorted(set(name) & FORBIDDEN))}"
    elif any(c.isspace() for c in name) or not name.isprintable():
        why = "must not contain spaces or invisible characters"
    elif name.startswith(".") or name.endswith("."):
        why = "must not begin or end with a dot"
    elif name.split(".")[0].upper() in DEVICES:
        why = "is the name of a device on Windows"
    elif len(name.encode()) > LONGEST_NAME:
        why = f"is longer than {LONGEST_NAME} bytes"
    if why:
        raise ValueError(f"the {what} {name[:40]!r} {why}; take a plain one, as 'rex' or 'blue_teapot'.")
    return name


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """One safetensors file: whole, or not at all. Raises ValueError, in one sentence, where the disk refuses."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda unfinished: save_file(contiguous, unfinished, dict(metadata)))
    except (OSError, SafetensorError) as error:
        raise ValueError(_refused(path, error)) from error


def _refused(path: Path, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if isinstance(error, PermissionError) or number == errno.EROFS:
        return f"{path.parent} cannot be written; let ComfyUI write there, or make room for the file elsewhere."
    if number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) or isinstance(error, SafetensorError):
        return f"{path} could not be written, the disk is full ({error}); make room and queue again."
    return f"{path} could not be written ({error}); mend that and queue again."


def check_writable(folder: Path) -> None:
    """Raise ValueError where the folder cannot be written: better before the work than after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".unfinished"):
            pass
    except OSError as error:
        raise ValueError(_refused(folder / "file", error)) from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and metadata of a safetensors file; None where there is none, or not a whole one."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in list(file.keys())}, file.metadata() or {}
    except (OSError, SafetensorError):
        return None


def settings_of(path: Path) -> dict[str, Any]:
    """What a file says of the tuning that made it; empty where it says nothing."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            settings = json.loads((file.metadata() or {}).get(SETTINGS, "{}"))
    except (OSError, SafetensorError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as model sites state it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def own_folder() -> Path:
    return Path(folder_paths.get_user_directory()) / "__dreamtuner"


def regular_folder(key: str) -> Path:
    return own_folder() / "regular" / key


@dataclass(frozen=True)
class TuningFiles:
    """Where the tuning of that name is. Each kind of file goes to the first of its folders, as the host's do."""

    name: str

    @property
    def lora(self) -> Path:
        return Path(folder_paths.get_folder_paths("loras")[0]) / f"{self.name}.safetensors"

    @property
    def embedding(self) -> Path:
        return Path(folder_paths.get_folder_paths("embeddings")[0]) / f"{self.name}.safetensors"

    @property
    def encoder(self) -> Path:
        return ENCODERS.folders()[0] / f"{self.name}{SUFFIX}"

    @property
    def state(self) -> Path:
        return own_folder() / "tuning" / self.name / "state.safetensors"

    def check(self, key: str, with_encoder: bool = False, with_state: bool = True) -> None:
        """Raise ValueError where the folders cannot be written, or a file of the name is of something else.

        key: of this tuning's settings. A file of the same settings is one to go on with. with_encoder, with_state:
        whether a subject encoder and the state are written too.
        """
        more = [*([self.encoder] if with_encoder else []), *([self.state] if with_state else [])]
        for path in (self.lora, self.embedding, *more):
            check_writable(path.parent)
            if path.exists() and settings_of(path).get("key") != key:
                raise ValueError(
                    f"the name '{self.name}' is taken: {path} is of another tuning, or of something else; take "
                    "another name, or delete that file. To go on with a tuning leave all but `steps` as it was."
                )
