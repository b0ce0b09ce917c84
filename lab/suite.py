"""The whole suite: `python3 -m lab test [pytest arguments]`.

ruff and mypy, then pytest over tests/ on ComfyUI 0.3.75, then the host-facing parts, tests/host and tests/server,
on 0.3.52. With --host, or COMFYUI_PATH, one host only. Where the arguments name tests, only those are run, on one
host. The last line counts the tests of all runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lab.host import DEFAULT_HOST, HOME, HOSTS, ROOT, SetupError, prepare, say
from lab.inside import PACK, TREE_VARIABLE, host_tree

HOST_FACING = ("tests/host", "tests/server")
NO_TESTS = 5  # pytest's exit status when it found nothing to run


def main(argv: Sequence[str]) -> int:
    if any(argument in ("-h", "--help") for argument in argv):
        print(__doc__)
        return 0
    chosen = [argument for argument in argv if not argument.startswith("-") and _names_tests(argument)]
    if chosen:
        counts = Counter[str]()
        return 0 if _pytest(host_tree(), argv, counts) else 1
    good = [_check("ruff", ["ruff", "check", "."]), _types()]
    counts = Counter[str]()
    good.append(_pytest(host_tree(), ["tests", *argv], counts))
    if "DREAMTUNER_ONE_HOST" not in os.environ:
        for version in HOSTS:
            if version != DEFAULT_HOST:
                good.append(_on_host(version, argv, counts))
    failed = counts["failed"] + good[:2].count(False)  # ruff and mypy count as one test each
    passed = counts["passed"] + good[:2].count(True)
    print(f"{passed} passed, {failed} failed, {counts['skipped']} skipped")
    return 0 if all(good) else 1


def _names_tests(argument: str) -> bool:
    return (ROOT / argument.split("::")[0]).exists()


def _on_host(version: str, argv: Sequence[str], counts: Counter[str]) -> bool:
    try:
        tree = prepare(version).tree
    except SetupError as error:
        say(str(error))
        return False
    return _pytest(tree, [*HOST_FACING, *argv], counts)


def _types() -> bool:
    """mypy, over the pack under the package name that `lab.inside` gives it, and over the lab.

    The pack's relative imports climb to the repository's root, whose folder may have any name: hence the link.
    """
    link = HOME / "types" / PACK
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(ROOT, target_is_directory=True)
    os.environ["MYPYPATH"] = str(link.parent)
    targets = [part for name in ("dreamtuner_core", "nodes") for part in ("-p", f"{PACK}.{name}")]
    return _check("mypy", ["mypy", *targets, "-p", "lab"])


def _check(name: str, command: Sequence[str]) -> bool:
    say(name)
    good = subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode == 0
    if not good:
        say(f"{name} found something to mend (above)")
    return good


def _pytest(tree: Path, arguments: Sequence[str], counts: Counter[str]) -> bool:
    """One run of pytest on one host; adds to `counts`. A run that finds no test to run is no failure of the code."""
    report = HOME / "pytest.xml"
    report.unlink(missing_ok=True)
    say(f"pytest on {tree.name}")
    command = [sys.executable, "-m", "pytest", f"--junit-xml={report}", *arguments]
    status = subprocess.run(command, cwd=ROOT, env=os.environ | {TREE_VARIABLE: str(tree)}).returncode
    if report.exists():
        for suite in xml.parse(report).getroot().iter("testsuite"):
            number = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
            counts["failed"] += number["failures"] + number["errors"]
            counts["skipped"] += number["skipped"]
            counts["passed"] += number["tests"] - number["failures"] - number["errors"] - number["skipped"]
    return status in (0, NO_TESTS)
