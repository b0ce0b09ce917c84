"""The small trial as a new user runs it, killed in the middle and run again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.host import HOME, ROOT
from lab.trial.plan import parse
from lab.trial.record import Record

OPTIONS = ["--seeds", "2", "--steps", "3", "--owner", "test_trial"]


@pytest.fixture
def options(tmp_path: Path) -> Iterator[list[str]]:
    (tmp_path / "prompts.txt").write_text("a robot, on a beach\na robot, on snow\n", encoding="utf-8")
    asked = [*OPTIONS, "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "trial.html")]
    yield asked
    shutil.rmtree(HOME / "trials" / parse(asked)[0].key, ignore_errors=True)


def start(options: list[str]) -> subprocess.Popen[bytes]:
    variables = os.environ | {"DREAMTUNER_LAB_INSIDE": "1"}
    command = [sys.executable, "-m", "lab", "trial", *options]
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_killed_trial_goes_on(options: list[str], tmp_path: Path) -> None:
    plan = parse(options)[0]
    folder = HOME / "trials" / plan.key
    first = start(options)
    end = time.monotonic() + 400
    while len(Record.read(folder).shots) < 2 and time.monotonic() < end:
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {shot.file: (folder / shot.file).stat().st_mtime_ns for shot in Record.read(folder).shots}
    assert 2 <= len(kept) < 8

    assert start(options).wait(400) == 0
    record = Record.read(folder)
    assert len(record.shots) == 2 * 2 * 2
    assert all(shot.score for shot in record.shots)
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    assert (tmp_path / "trial.html").read_text(encoding="utf-8").count("<figure>") == 1 + 4 + 8
    begun = time.monotonic()
    assert (
        start([*options, "--lang", "ja", "--minutes-by-hand", "30"]).wait(60) == 0
    )  # another page draws nothing again
    assert time.monotonic() - begun < 20
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
