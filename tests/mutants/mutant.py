"""A planted bug, and whether a test finds it: in a copy of the repository, so that nothing here is touched."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".lab", "__pycache__", "*_cache", "workflows", "web", "docs")
SLOW_TO_IMPORT = ("torch", "pytest", "hypothesis", "safetensors.torch", "comfy.model_management", "comfy.sd", "nodes")


class Mutant(NamedTuple):
    """`old` stands once in `file`, and becomes `new`; `tests` (a file, or one test of it) must fail then."""

    name: str
    file: str
    old: str
    new: str
    tests: str

    def dies(self, copy: Path) -> bool:
        """Raises LookupError where the line is not there any more: the list is to be kept up."""
        path = copy / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise LookupError(f"{self.name}: {self.old!r} stands {text.count(self.old)} times in {self.file}")
        path.write_text(text.replace(self.old, self.new))
        try:
            return status_of(lambda: run_tests(copy, self.tests)) == 1
        finally:
            path.write_text(text)


def run_tests(copy: Path, tests: str) -> int:
    import pytest

    os.chdir(copy)
    sys.path.append(str(copy))
    sys.dont_write_bytecode = True
    return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", tests]))


def status_of(work: Callable[[], int]) -> int:
    """The exit status of that work in a child process, which inherits what is imported here; it prints nothing."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = -1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        status = work()
    finally:
        os._exit(status % 256)


def import_what_is_slow() -> None:
    """The host and the libraries, once for all mutants; nothing of this repository stays, for that is what changes."""
    from lab.inside import import_host

    import_host()
    for name in SLOW_TO_IMPORT:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.split(".")[0] == "lab"]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != ROOT]


def copied(folder: str) -> Path:
    copy = Path(folder) / "copy"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    (copy / ".lab").symlink_to((ROOT / ".lab").resolve())
    return copy


def table(mutants: Sequence[Mutant]) -> int:
    """Print each one's fate; gives how many live. Raises RuntimeError where a test fails without any bug planted."""
    living = 0
    import_what_is_slow()
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(folder)
        for mutant in mutants:
            began = time.monotonic()
            try:
                fate = "dies " if mutant.dies(copy) else "LIVES"
            except LookupError:
                fate = "GONE "  # the line is not there any more
            living += fate != "dies "
            print(f"{fate} {time.monotonic() - began:5.0f} s  {mutant.name}", flush=True)
        for tests in sorted({mutant.tests for mutant in mutants}):
            if status_of(lambda tests=tests: run_tests(copy, tests)) != 0:  # type: ignore[misc]
                raise RuntimeError(f"{tests} fails without any bug planted")
    print(f"{len(mutants) - living} of {len(mutants)} die")
    return living
