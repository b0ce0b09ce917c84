"""A planted bug, and whether a test finds it: in a copy of the repository, so that nothing here is touched."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".lab", "__pycache__", "*_cache", "workflows", "web", "docs")


class Mutant(NamedTuple):
    """`old` stands once in `file`, and becomes `new`; `tests` must fail then."""

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
            run = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", self.tests]
            return subprocess.run(run, cwd=copy, capture_output=True).returncode == 1
        finally:
            path.write_text(text)


def copied(folder: str) -> Path:
    copy = Path(folder) / "copy"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    (copy / ".lab").symlink_to((ROOT / ".lab").resolve())
    return copy


def table(mutants: list[Mutant]) -> int:
    """Print each one's fate; gives how many live."""
    living = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(folder)
        for mutant in mutants:
            dies = mutant.dies(copy)
            living += not dies
            print(f"{'dies ' if dies else 'LIVES'}  {mutant.name}", flush=True)
    print(f"{len(mutants) - living} of {len(mutants)} die")
    return living
