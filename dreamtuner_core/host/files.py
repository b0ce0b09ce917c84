"""The pack's model folders, registered with the host (extra_model_paths included), and safetensors files in them."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import folder_paths
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..files import read_whole, write_all_whole
from ..texts import reason, shown

SUFFIX = ".safetensors"
WINDOWS = {5: errno.EACCES, 32: errno.EACCES, 33: errno.EACCES, 39: errno.ENOSPC, 112: errno.ENOSPC}  # its own numbers
SALT = secrets.token_bytes(16)  # of this process


@dataclass(frozen=True)
class ModelFolder:
    """models/<name>, and every other folder of that kind known to the host. also: other packs' folders to read from."""

    name: str
    also: tuple[str, ...] = ()

    def folders(self) -> list[Path]:
        """All folders. The first call registers models/<name>, in addition to those from extra_model_paths."""
        for name in (self.name, *self.also):
            known, _ = folder_paths.folder_names_and_paths.get(name, ((), ()))
            for folder in (str(Path(folder_paths.models_dir) / name), *known):
                folder_paths.add_model_folder_path(self.name, folder)
        return [Path(folder) for folder in folder_paths.get_folder_paths(self.name)]

    def files(self) -> list[str]:
        """Names of the files in these folders."""
        self.folders()
        return [name for name in folder_paths.get_filename_list(self.name) if name.endswith(SUFFIX)]

    def path(self, file: str) -> Path:
        """The path of that file. Raises ValueError for a name that is not in `files`."""
        path = folder_paths.get_full_path(self.name, file) if file in self.files() else None
        if path is None:
            raise ValueError(
                f"there is no '{shown(file)}' in models/{self.name}; choose one of the list, or put the file there."
            )
        return Path(path)

    def fingerprint(self, file: str) -> str:
        """A text that changes when the file does; empty if there is no such file.

        The host saves it in every image, so it must not reveal dates or sizes.
        """
        try:
            found = self.path(file).stat()
        except (ValueError, OSError):
            return ""
        return hashlib.sha256(SALT + f"{found.st_mtime_ns} {found.st_size}".encode()).hexdigest()[:16]


class File(NamedTuple):
    """A safetensors file to write."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    def save(self, path: Path) -> None:
        save_file({name: x.contiguous() for name, x in self.tensors.items()}, path, dict(self.metadata))


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], new: bool = False) -> None:
    """Write one safetensors file, completely or not at all. Raises ValueError, in one sentence, if that fails.

    new: nothing is replaced; raises Taken if the file is there.
    """
    write_together([File(path, tensors, metadata)], new)


def write_together(files: Sequence[File], new: bool = False) -> None:
    """Write files that belong together: all of them, or none is changed. Raises as `write` does."""
    try:
        for file in files:
            file.path.parent.mkdir(parents=True, exist_ok=True)
        write_all_whole({file.path: file.save for file in files}, new)
    except (OSError, SafetensorError, UnicodeError) as error:
        raise ValueError(_refused(files, error)) from error


def _refused(files: Sequence[File], error: Exception) -> str:
    """What went wrong and what to do, without the absolute path in the system's own message."""
    where = ", ".join(place(file.path) for file in files)
    number = getattr(error, "errno", None)
    if found := re.search(r"os error (\d+)", str(error)):  # so safetensors says what the system refused
        number = WINDOWS.get(int(found[1]), int(found[1])) if os.name == "nt" else int(found[1])
    if isinstance(error, PermissionError) or number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where} cannot be written; let ComfyUI write there, or end what has the file open, and queue again."
    if number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return f"{where} could not be written because the disk is full; make room and queue again."
    return f"{where} could not be written ({reason(error)}); fix that and queue again."


def place(path: Path) -> str:
    """A file's place for messages, without absolute folders: 'loras/rex.safetensors'."""
    for root in (folder_paths.models_dir, folder_paths.get_user_directory()):
        if path.is_relative_to(root):
            inside = path.relative_to(root).as_posix()
            return f"{Path(root).name}/{inside}" if Path(root).name == "user" else inside
    return "/".join(path.parts[-2:])


def check_writable(folder: Path) -> None:
    """Raise ValueError if the folder is not writable, before long work begins."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".unfinished"):
            pass
    except OSError as error:
        raise ValueError(_refused([File(folder, {}, {})], error)) from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and metadata of a safetensors file, copied; None if it is missing or damaged."""
    try:
        return read_whole(path)
    except ValueError:
        return None


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as model sites show it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
