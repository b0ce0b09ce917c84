"""Writing a file whole, or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write` an unfinished file beside `path`, then give it its name: what stood there before stays until then.

    Raises what `write` raises, and OSError where the disk refuses; nothing unfinished is left.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        write(unfinished)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())  # so that a power cut cannot leave the name on an empty file
        with suppress(OSError):  # not every file system has modes
            unfinished.chmod(mode)  # as any file's: safetensors lets only its owner read what it writes
        unfinished.replace(path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
