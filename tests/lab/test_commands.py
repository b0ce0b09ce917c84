"""`python3 -m lab COMMAND --help` answers on a bare Python, and sets nothing up."""

import subprocess
import sys

import pytest

from lab.__main__ import MODULES
from lab.host import ROOT

ASK = """
import sys
sys.path.insert(0, ".")
import lab.__main__ as lab
lab.prepare = None
sys.exit(lab.main(sys.argv[1:]))
"""


def ask(*arguments: str) -> str:
    """The answer of a Python without any package (-S), isolated from this one (-I)."""
    command = [sys.executable, "-I", "-S", "-c", ASK, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("command", MODULES)
def test_every_command_has_help(command: str) -> None:
    told = ask(command, "--help")
    assert f"lab {command}" in told
    assert len(told.splitlines()) > 2


def test_every_command_is_listed() -> None:
    listed = ask("--help")
    assert all(f"\n  {command} " in listed for command in MODULES)
