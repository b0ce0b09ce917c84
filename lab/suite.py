"""The whole suite: `python3 -m lab test [pytest arguments]`.

ruff and mypy, then pytest over tests/ on ComfyUI 0.3.75 and, at the same time, over the host-facing parts, tests/host
and tests/server, on 0.3.52. With --host, or COMFYUI_PATH, only one host. If the arguments name tests, only those are
run, on one host. The last line counts the tests of all runs; ruff and mypy count as one each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.host import DEFAULT_HOST, HOME, HOSTS, ROOT, SetupError, prepare, say
from lab.inside import PACK, TREE_VARIABLE, host_tree

HOST_FACING = ("tests/host", "tests/server")
NO_TESTS = 5  # pytest's exit status when it found nothing to run


@dataclass(frozen=True)
class Run:
    """A pytest run in progress. log: None if it writes to the terminal."""

    tree: Path
    process: subprocess.Popen[bytes]
    report: Path
    log: Path | None


def main(argv: Sequence[str]) -> int:
    if any(argument in ("-h", "--help") for argument in argv):
        print(__doc__)
        return 0
    if any(_names_tests(argument) for argument in argv):
        return 0 if _finish([_start(host_tree(), argv)], Counter()) else 1
    good = [_check("ruff", ["ruff", "check", "."]), _types()]
    counts = Counter({"passed": good.count(True), "failed": good.count(False)})
    try:
        others = [] if "DREAMTUNER_ONE_HOST" in os.environ else [prepare(v).tree for v in HOSTS if v != DEFAULT_HOST]
    except SetupError as error:
        say(str(error))
        return 1
    runs = [_start(host_tree(), ["tests", *argv])]
    runs += [_start(tree, [*HOST_FACING, *argv], HOME / f"pytest-{tree.name}.log") for tree in others]
    good.append(_finish(runs, counts))
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 0 if all(good) else 1


def _names_tests(argument: str) -> bool:
    return not argument.startswith("-") and (ROOT / argument.split("::")[0]).exists()


def _types() -> bool:
    """mypy over the pack, under the package name of `lab.inside`, and over the lab.

    The pack's relative imports go up to the repository's root, whose folder may have any name: hence the link.
    """
    link = HOME / "types" / ROOT.name / PACK
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(ROOT, target_is_directory=True)
    os.environ["MYPYPATH"] = str(link.parent)
    targets = [part for name in ("dreamtuner_core", "nodes") for part in ("-p", f"{PACK}.{name}")]
    return _check("mypy", ["mypy", *targets, "-p", "lab"])


def _check(name: str, command: Sequence[str]) -> bool:
    say(name)
    good = subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode == 0
    if not good:
        say(f"{name} found problems (above)")
    return good


def _start(tree: Path, arguments: Sequence[str], log: Path | None = None) -> Run:
    say(f"pytest on {tree.name}" + (f", at the same time, into {log}" if log else ""))
    report = HOME / f"pytest-{tree.name}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", f"--junit-xml={report}", *arguments]
    # one thread each: with two runs on two cores, threads that wait for each other cost more than they gain
    variables = {"OMP_NUM_THREADS": "1"} | os.environ | {TREE_VARIABLE: str(tree)}
    output = log.open("wb") if log else None
    process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=output and subprocess.STDOUT)
    return Run(tree, process, report, log)


def _finish(runs: Sequence[Run], counts: Counter[str]) -> bool:
    """Wait for the runs and add up their counts. A run that finds no test is not a failure."""
    try:
        for run in runs:
            run.process.wait()
            if run.log:
                say(f"pytest on {run.tree.name}:")
                print(run.log.read_text(errors="replace"), flush=True)
            if run.report.exists():
                _count(run.report, counts)
    finally:
        for run in runs:
            run.process.terminate()
    return all(run.process.returncode in (0, NO_TESTS) for run in runs)


def _count(report: Path, counts: Counter[str]) -> None:
    for suite in xml.parse(report).getroot().iter("testsuite"):
        number = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        failed = number["failures"] + number["errors"]
        counts["failed"] += failed
        counts["skipped"] += number["skipped"]
        counts["passed"] += number["tests"] - failed - number["skipped"]
