"""`python3 -m lab COMMAND ...`: set up what is missing, then run the command in the lab's environment.

commands:
  demo      queue the shipped workflow on a real ComfyUI and write a sheet of pictures
  test      the whole suite: ruff, mypy, pytest, on both hosts (further arguments go to pytest)
  bench     speed and memory of the method, compared with plain sampling
  measure   likeness and quality of the method
  memory    the memory of a step of Subject Tuning, counted
  trial     a small trial on your own checkpoint: cost, saving, quality and risks on one page
  page      the shipped workflows in ComfyUI's own page, in an installed browser
  cards     the cards of the shipped workflows, drawn with the mini base
  mini      the small base model: its data, training and checks

options:
  --host VERSION   which ComfyUI to use, for demo, test, trial, page and cards: {versions}

environment:
  COMFYUI_PATH     use the ComfyUI installed there instead of fetching one
  COMFYUI_PYTHON   the Python that runs it; else the one in its venv/ or .venv/, else the lab's own

The first run makes .lab/ (minutes); later ones use it (seconds). `python3 -m lab COMMAND --help` explains a command.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from lab.host import HOSTS, ROOT, SetupError, prepare, say

MODULES = {
    "demo": "lab.demo",
    "test": "lab.suite",
    "bench": "lab.bench",
    "measure": "lab.measure",
    "memory": "lab.memory",
    "trial": "lab.trial.__main__",
    "page": "lab.page",
    "cards": "lab.cards",
    "mini": "lab.mini.__main__",
}
INSIDE = "DREAMTUNER_LAB_INSIDE"  # set in the process that runs in the environment


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print((__doc__ or "").format(versions=", ".join(HOSTS)))
        return 0 if argv else 2
    command = next((argument for argument in argv if argument in MODULES), None)
    if command is None:
        say(f"There is no command in {' '.join(argv)!r}: choose one of {', '.join(MODULES)}.")
        return 2
    version, rest = _host_option(argv) if command in ("demo", "test", "trial", "page", "cards") else (None, list(argv))
    rest.remove(command)
    if {"-h", "--help"} & set(rest):
        return _help(command)
    if INSIDE in os.environ:
        return _run(command, rest)
    return _enter(version, [command, *rest])


def _help(command: str) -> int:
    """Show the command's own help with the present Python, without any set-up."""
    try:
        return importlib.import_module(MODULES[command]).main(["--help"]) or 0
    except ModuleNotFoundError:  # a command whose options need the environment
        spec = importlib.util.find_spec(MODULES[command])
        assert spec is not None
        assert spec.origin is not None
        print(ast.get_docstring(ast.parse(Path(spec.origin).read_text())))
        print(f"\nIts options are shown once `python3 -m lab {command}` has been set up.")
        return 0


def _host_option(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    parser = argparse.ArgumentParser(prog="python3 -m lab", add_help=False, allow_abbrev=False)
    parser.add_argument("--host", choices=HOSTS)
    options, rest = parser.parse_known_args(argv)
    return options.host, rest


def _enter(version: str | None, arguments: Sequence[str]) -> int:
    """Set up, then replace this process by the same command in the environment."""
    try:
        host = prepare(version)
    except (SetupError, OSError) as error:
        say(str(error))
        return 1
    say(f"ComfyUI {host.version} at {host.tree}")
    variables = {INSIDE: "1", "DREAMTUNER_HOST_TREE": str(host.tree)}
    if version or "COMFYUI_PATH" in os.environ:
        variables["DREAMTUNER_ONE_HOST"] = "1"  # `test` then leaves the other hosts alone
    os.chdir(ROOT)
    sys.stdout.flush()
    os.execve(host.python, [str(host.python), "-m", "lab", *arguments], os.environ | variables)


def _run(command: str, arguments: Sequence[str]) -> int:
    from lab.mini import shipped

    signal.signal(signal.SIGTERM, _leave)
    name = MODULES[command]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        part_of_lab = name.startswith(error.name or "?")
        say(f"{command} is not in this checkout ({name})." if part_of_lab else f"{command} needs {error.name}.")
        return 1
    try:
        if shipped.missing():
            from lab.mini.packed import unpack_all

            unpack_all()
        return module.main(list(arguments)) or 0
    except KeyboardInterrupt:
        say("stopped")
        return 130


def _leave(number: int, frame: FrameType | None) -> None:
    """On SIGTERM, unwind the stack, so that servers are stopped and folders removed."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
