"""Files: written completely or not at all, and read within limits, because they may come from anywhere."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

UNFINISHED = ".unfinished"
OURS = re.compile(rf"\.[0-9a-f]{{16}}(\.before)?{re.escape(UNFINISHED)}$")  # the end of a temporary file's name
ABANDONED = 3600  # seconds without a write, after which nobody writes an unfinished file any more
LARGEST_HEADER = 8 * 2**20  # bytes of a safetensors header; those of large models with their metadata have one or two
LONGEST_JSON = 2**20  # characters of a JSON text in the metadata


class Taken(Exception):
    """Another process has written a file of that name meanwhile."""


def write_whole(path: Path, write: Callable[[Path], object], new: bool = False) -> None:
    """`write` to a temporary file beside `path`, then rename it: the previous file stays until then.

    Raises what `write` raises, and OSError if the disk fails. The temporary file is removed; if the process is killed,
    the next write to that folder after an hour removes it. new: nothing is replaced; raises Taken if the file is there.
    """
    write_all_whole({path: write}, new)


def write_all_whole(files: Mapping[Path, Callable[[Path], object]], new: bool = False) -> None:
    """`write_whole` for several files that belong together: all of them are replaced, or none."""
    unfinished: dict[Path, Path] = {}
    try:
        for path, write in files.items():
            _remove_unfinished(path.parent, ".", ABANDONED)
            # random, for containers may share a folder and a process id
            unfinished[path] = path.with_name(f".{path.name}.{secrets.token_hex(8)}{UNFINISHED}")
            _write(unfinished[path], write)
        if new:
            for path, written in unfinished.items():
                _claim(path, written)
        _rename_all(unfinished)
    finally:
        _remove(unfinished.values())


def _rename_all(unfinished: Mapping[Path, Path]) -> None:
    """Give the files their names. If the system refuses one, those that were there before come back."""
    before: dict[Path, Path] = {}
    renamed: list[Path] = []
    try:
        for path, written in unfinished.items():
            if len(unfinished) > 1 and path.exists():
                before[path] = Path(f"{written.with_suffix('')}.before{UNFINISHED}")
                _second_name(path, before[path])
            written.replace(path)
            renamed.append(path)
    except BaseException:
        for path in renamed:
            with suppress(OSError):
                before[path].replace(path) if path in before else path.unlink()
        raise
    finally:
        _remove(before.values())


def _second_name(path: Path, other: Path) -> None:
    try:
        other.hardlink_to(path)
    except OSError:  # not every file system has hard links
        shutil.copyfile(path, other)


def _remove(files: Iterable[Path]) -> None:
    for left in files:
        with suppress(OSError):
            left.unlink(missing_ok=True)


def _claim(path: Path, written: Path) -> None:
    """Take the name for that file, which only one process can. Raises Taken."""
    try:
        try:
            path.hardlink_to(written)
        except FileExistsError:
            raise
        except OSError:  # not every file system has hard links
            path.open("xb").close()
    except FileExistsError as error:
        raise Taken from error


def _write(unfinished: Path, write: Callable[[Path], object]) -> None:
    with unfinished.open("xb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    write(unfinished)
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())  # so that a power cut cannot leave the name on an empty file
    with suppress(OSError):  # not every file system has modes
        unfinished.chmod(mode)  # the usual mode: safetensors lets only the owner read what it writes


def sweep(path: Path) -> None:
    """Remove what killed processes left of that file; nobody may be writing it now."""
    _remove_unfinished(path.parent, f".{path.name}.", older_than=0)


def _remove_unfinished(folder: Path, start: str, older_than: float) -> None:
    """Remove the folder's temporary files with that beginning. older_than: seconds since the last write."""
    with suppress(OSError):
        for left in folder.iterdir():
            if left.name.startswith(start) and OURS.search(left.name):
                with suppress(OSError):
                    if time.time() - left.stat().st_mtime >= older_than:
                        left.unlink()


def read_whole(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, copied, so that the file is not left mapped or open.

    Windows cannot replace a mapped file. Raises ValueError, in a few words, for a damaged file or one of another kind.
    """
    try:
        check_header(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key).clone() for key in list(file.keys())}, file.metadata() or {}
    except MemoryError:
        raise
    except Exception as error:  # reading a stranger's bytes may raise anything
        raise ValueError("is not a complete safetensors file") from error


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load these weights into a network, which may be on "meta": fp32, on the CPU, frozen, in eval mode.

    Raises ValueError, in a few words, unless names and shapes are those of the network and all values are finite.
    """
    expected = network.state_dict()
    if {name: x.shape for name, x in weights.items()} != {name: x.shape for name, x in expected.items()}:
        raise ValueError("has other weights than this network")
    floats = {name: x.float() for name, x in weights.items() if not x.is_complex()}
    if len(floats) < len(weights) or not all(bool(torch.isfinite(x).all()) for x in floats.values()):
        raise ValueError("has NaN or infinite weights")
    network.load_state_dict(floats, assign=True)
    network.eval().requires_grad_(False)


def metadata_of_file(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a safetensors file; empty if it is not one."""
    try:
        check_header(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}
    except MemoryError:
        raise
    except Exception:  # reading a stranger's bytes may raise anything
        return {}


def check_header(path: str | os.PathLike[str], largest: int = LARGEST_HEADER) -> None:
    """Raise SafetensorError if this is not a regular file, or its header is larger than `largest` bytes.

    safetensors parses a header of up to 100 MB as JSON, which takes half a minute and gigabytes of memory.
    """
    if not Path(path).is_file():  # a pipe would never end, a folder has no bytes
        raise SafetensorError("no file")
    with Path(path).open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > largest:
        raise SafetensorError(f"a header of {size} bytes")


def plain_json(text: str | None, longest: int = LONGEST_JSON) -> Any:
    """Parse a JSON text from an unknown source. None if it is invalid, nested too deeply, or longer than `longest`."""
    if not isinstance(text, str) or len(text) > longest:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
