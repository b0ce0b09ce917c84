"""Folders of models that the pack adds to the host's own, extra_model_paths honoured."""

from __future__ import annotations

import errno
import hashlib
import tempfile
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import folder_paths
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import write_whole

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ModelFolder:
    """models/<name>, and every other folder that the host has of that kind. also: of other packs, read as well."""

    name: str
    also: tuple[str, ...] = ()

    def folders(self) -> list[Path]:
        """Registered as the host's own are: when first asked for, beside what extra_model_paths already gave."""
        for name in (self.name, *self.also):
            known, _ = folder_paths.folder_names_and_paths.get(name, ((), ()))
            for folder in (str(Path(folder_paths.models_dir) / name), *known):
                folder_paths.add_model_folder_path(self.name, folder)
        return [Path(folder) for folder in folder_paths.get_folder_paths(self.name)]

    def files(self) -> list[str]:
        """Names of the files in them."""
        self.folders()
        return [name for name in folder_paths.get_filename_list(self.name) if name.endswith(SUFFIX)]

    def path(self, file: str) -> Path:
        """Where that file is. Raises ValueError for a name that is none of `files`."""
        path = folder_paths.get_full_path(self.name, file) if file in self.files() else None
        if path is None:
            raise ValueError(
                f"there is no '{file!s:.80}' in models/{self.name}; choose one of the list, or put the file there."
            )
        return Path(path)

    def fingerprint(self, file: str) -> str:
        """What changes when the file does; empty where there is none."""
        try:
            found = self.path(file).stat()
        except (ValueError, OSError):
            return ""
        return f"{found.st_mtime_ns} {found.st_size}"


FORBIDDEN = set('/\\<>:"|?*,()[]{}')  # what folders, Windows or a prompt's own grammar take for something else
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in (*range(10), "¹", "²", "³"))}
LONGEST_NAME = 100  # bytes, as the file systems count


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


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as model sites state it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
