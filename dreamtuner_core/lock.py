"""Locks between processes that share a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """A lock, held in that file. Raises ValueError, with the sentence `busy`, if another process holds it.

    Not every file system has locks; without them a warning is logged.
    """
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(busy) from None
    except (OSError, NotImplementedError) as error:
        log.warning("DreamTuner: '%s' cannot be locked (%s); use it from one process alone", path.parent.name, error)
    try:
        yield
    finally:
        lock.release()
