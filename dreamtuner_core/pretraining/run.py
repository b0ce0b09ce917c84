"""A run from start to end: steps, checkpoints, the log and sheets. It saves its state however it ends."""

from __future__ import annotations

import csv
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError

from ..encoder import file as encoder_file
from ..encoder.model import SubjectEncoder
from ..files import UNFINISHED, write_whole
from ..lock import locked
from ..pretraining import checkpoint
from .data import Row, usable
from .loop import Pretraining, Taken

ENCODER, LOG = "subject_encoder.safetensors", "loss.csv"
COLUMNS = ("step", "loss", "rate", "pictures_a_second", "skipped")


class Unfinished(RuntimeError):
    """The run stopped before its last step and can be resumed; the message is one clear sentence."""


def run(training: Pretraining) -> Path:
    """Train from the newest checkpoint in the folder to the last step, and return the encoder's file.

    Raises Unfinished if a signal or a lost process stops it; the same command resumes it. Raises ValueError if another
    run has that folder, or it cannot be written.
    """
    folder = Path(training.config.folder)
    if not training.accelerator.is_main_process:
        return _run(training, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check = folder / f".writable{UNFINISHED}"
        check.touch()
        check.unlink()
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error}); let this run write there.") from error
    busy = f"another run writes to {folder}; wait until it ends, or give this one its own folder."
    with locked(folder / "lock", busy):
        return _run(training, folder)


def _run(training: Pretraining, folder: Path) -> Path:
    config = training.config
    if found := checkpoint.checkpoints(folder):
        training.load_state(checkpoint.load(found[-1], config))
    first, began = training.accelerator.is_main_process, training.step
    report = Report(training) if first else None
    again = training.base.recomputed() if config.gradient_checkpointing else nullcontext()
    with _ending_after_a_step(training), again:
        while training.step < config.steps:
            taken = _step(training, folder, began)
            if report:
                report.after(taken)
            if training.step % config.save_every == 0 or training.step == config.steps or taken.stop:
                if first:
                    keep(training)
                training.accelerator.wait_for_everyone()
            if report and not taken.stop:
                report.sheet()
            if taken.stop and training.step < config.steps:
                raise Unfinished(f"Stopped after step {training.step} of {config.steps}. {_resume(folder)}")
    return folder / ENCODER


def _step(training: Pretraining, folder: Path, began: int) -> Taken:
    """One step. If another process or a data worker dies, this process saves its state.

    began: the step at which this run began. An error in its first step would occur again, so it is not resumable.
    """
    try:
        return training.advance()
    except RuntimeError as error:  # of torch: a broken connection, a killed reader, a full device
        reason = " ".join(str(error).split())[:200]
        if training.step == began:
            raise ValueError(f"the first step failed ({reason}); fix that, and start again.") from error
        if training.accelerator.is_main_process and training.whole and training.step:
            keep(training)
        raise Unfinished(f"Step {training.step + 1} failed ({reason}). {_resume(folder)}") from error


def _resume(folder: Path) -> str:
    newest = checkpoint.checkpoints(folder)[-1:]
    found = f"The newest checkpoint is {newest[0]}" if newest else "There is no checkpoint yet"
    return f"{found}; run the same command again to go on."


def keep(training: Pretraining) -> None:
    """Write a checkpoint, and the current encoder in the file that Load Subject Encoder reads."""
    config, folder = training.config, Path(training.config.folder)
    checkpoint.save(folder, training.step, training.state(), config)
    export(training.encoder, training, folder / ENCODER)


def export(encoder: SubjectEncoder, training: Pretraining, path: Path) -> None:
    """Write the encoder with the weights to export (the averaged ones if ema is set).

    Raises ValueError, in one sentence, if it cannot be written.
    """
    trained = {"steps": training.step, "pictures": training.step * training.config.batch}
    weights = encoder.state_dict() | training.learned()
    copy = SubjectEncoder(encoder.config, device="meta")
    copy.load_state_dict(weights, assign=True)
    origin = encoder_file.Origin(trained | training.config.outcome(), training.config.licence)
    try:
        encoder_file.save(path, copy, origin)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be written ({error}); make room, and run the same command again.") from error


class Report:
    """The first process's output: log lines, loss.csv, and fixed-seed sheets."""

    def __init__(self, training: Pretraining) -> None:
        self.training, self.config = training, training.config
        self.folder = Path(self.config.folder)
        self.losses: list[float] = []
        self.began = time.monotonic()
        self._shorten_log()
        self.rows: list[Row] = usable(self.config, training.base.tower_side) if self.config.sheet_every else []
        self._print(
            f"training {sum(p.numel() for p in training.parameters.values()):,} weights, from step {training.step}"
        )

    def after(self, taken: Taken) -> None:
        """Record a step; every `log_every` steps, log the mean loss and the speed."""
        self.losses.append(taken.loss)
        step = self.training.step
        if step % self.config.log_every == 0 or step == self.config.steps or taken.stop:
            self._line(taken)

    def sheet(self) -> None:
        """Make a sheet if one is due. A failure is logged, and training continues."""
        step, every = self.training.step, self.config.sheet_every
        if not every or (step % every and step != self.config.steps):
            return
        began = time.monotonic()
        try:
            self._sheet()
        except (RuntimeError, OSError) as error:  # a full device, a full disk
            self._print(f"no sheet of step {step} ({' '.join(str(error).split())[:200]})")
        self.began += time.monotonic() - began

    def _line(self, taken: Taken) -> None:
        seconds, step = time.monotonic() - self.began, self.training.step
        speed = len(self.losses) * self.config.batch / seconds
        loss = sum(self.losses) / len(self.losses)
        try:
            with (self.folder / LOG).open("a", newline="") as file:
                csv.writer(file).writerow([step, loss, self.config.rate(step - 1), f"{speed:.2f}", taken.skipped])
        except OSError as error:  # not a reason to end a run
            self._print(f"no line in {LOG} ({error})")
        self._print(
            f"step {step} of {self.config.steps}, loss {loss:.4f}, {speed:.1f} pictures/s, skipped {taken.skipped}"
        )
        self.losses, self.began = [], time.monotonic()

    def _sheet(self) -> None:
        path = self.folder / f"sheet_{self.training.step:09}.png"
        encoder = self.folder / f"{path.stem}.safetensors"
        try:
            export(self.training.encoder, self.training, encoder)
            sheet = self.training.base.sheet(encoder, self.rows)
        finally:
            encoder.unlink(missing_ok=True)
        Image.fromarray((sheet.clamp(0, 1) * 255).round().byte().numpy().astype(np.uint8)).save(path)
        self._print(f"drew {path}")

    def _shorten_log(self) -> None:
        """Remove the lines of an interrupted run that come after its last checkpoint."""
        path = self.folder / LOG
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        whole = [line for line in csv.reader(lines) if len(line) == len(COLUMNS) and line[0].isdecimal()]
        kept = [line for line in whole if int(line[0]) <= self.training.step]  # the last one may be cut off

        def write(unfinished: Path) -> None:
            with unfinished.open("w", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *kept])

        write_whole(path, write)

    @staticmethod
    def _print(text: str) -> None:
        print(f"pretraining: {text}", flush=True)


@contextmanager
def _ending_after_a_step(training: Pretraining) -> Iterator[None]:
    """A context in which SIGINT and SIGTERM (sent by clusters before preemption) end the run after the step."""

    def ask(number: int, frame: Any) -> None:
        training.stop = True
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
