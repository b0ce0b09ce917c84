"""Draws the rows and judges them; each individual of each row is kept, so that a stopped run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lab.demo import ENCODER
from lab.host import ROOT, say
from lab.measure import scores
from lab.measure.cast import ASKS, Case, cases, strangers
from lab.measure.local_models import LocalModels
from lab.measure.outside import OutsideJudge, Scale
from lab.measure.peers import start_latent
from lab.measure.rows import OTHER, Row
from lab.measure.scores import Scores
from lab.measure.studio import KEPT, Reference, Sampling, Studio, as_floats
from lab.measure.teach import Taught, kept_reader
from lab.mini.checkpoint import write_whole

VERSION = 1  # of the kept results: raise it when a figure's meaning changes
OWN, STRANGERS = range(50, 54), 6  # seeds of an individual's true pictures, number of others', for the outside judge

HERE = Path(__file__).parent
DRAWING = ("cast", "changes", "peers", "rows", "studio", "tuned")  # files that pictures depend on
JUDGING = ("scores", "outside", "cast")  # files that figures depend on, besides the reader

Cell = dict[str, Any]
"""The figures of one individual in one row: means over its pictures."""


@dataclass(frozen=True)
class Settings:
    """What a table is made of. individuals: how many; a larger table holds the smaller one."""

    individuals: int = 56
    seed: int = 1
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Result:
    """One row. cells: one for each individual. seconds: for all of them. sheet: strips of pictures, one for each."""

    row: Row
    cells: list[Cell]
    seconds: float
    sheet: list[Path]


class Bench:
    """The base in the host, the readers, and the individuals of one table."""

    def __init__(
        self,
        checkpoint: Path,
        settings: Settings,
        others: LocalModels | None = None,
        folder: Path = KEPT,
        taught: Taught | None = None,
    ) -> None:
        self.settings, self.others, self.folder = settings, others, folder
        self.studio = Studio(checkpoint, settings.sampling)
        leaves = self.studio.left_by_autoencoder
        self.taught = taught or kept_reader(folder, self.studio.autoencoder, leaves)
        self.outside = OutsideJudge()
        self.cases = cases(settings.individuals, settings.seed)
        self._references: dict[Case, Reference] = {}
        self._scales: dict[Case, tuple[Scale, float]] = {}
        self._others: dict[str, Tensor] = {}

    def reference(self, case: Case) -> Reference:
        if case not in self._references:
            self._references[case] = self.studio.reference(case)
        return self._references[case]

    # --- rows ----------------------------------------------------------------------------------------------------

    def key(self, row: Row) -> str:
        """Everything that a row's figures depend on, but for the individual: host, weights, code, settings."""
        import comfyui_version

        others = self.others.key if self.others else ""
        encoder = _file(ENCODER) if getattr(row.make, "encoder", 0) else ""
        return _digest(
            VERSION, comfyui_version.__version__, _drawing(), self.studio.weights, encoder,
            asdict(self.settings.sampling), self.settings.seed, row.make, row.denoise, row.true, others,
        )  # fmt: skip

    def members(self, row: Row) -> list[Case]:
        return self.cases[: row.most]

    def path(self, row: Row, case: Case) -> Path:
        """Of its figures, by this reader; its pictures lie beside it, and are read again by another."""
        return self.folder / "rows" / self.key(row) / f"{case.number}-{_digest(self.taught.key, _judging())}.json"

    def pictures(self, row: Row, case: Case) -> Path:
        return self.folder / "rows" / self.key(row) / f"{case.number}.webp"

    def missing(self, row: Row) -> list[Case]:
        """The individuals of which no earlier run left that row."""
        return [case for case in self.members(row) if not self.path(row, case).exists()]

    def run(self, row: Row) -> Result:
        """Draw, judge and keep what is missing of a row; and read the whole of it."""
        for case in self.missing(row):
            begun, path, drawn = time.monotonic(), self.path(row, case), self.pictures(row, case)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not drawn.exists():
                strip = (torch.cat(list(self.draw(row, case)), 1) * 255).round().byte().numpy()
                write_whole(drawn, lambda part, strip=strip: Image.fromarray(strip).save(part, "WEBP", lossless=True))  # type: ignore[misc]
                self.reference(case).forget()
            pictures = torch.stack(as_floats(np.asarray(Image.open(drawn))).chunk(ASKS, 1))
            cell: Cell = dict(self.judge(case, pictures))
            cell["seconds"] = time.monotonic() - begun
            _write(path, {"row": row.name, "individual": str(case)} | cell)
        paths = [self.path(row, case) for case in self.members(row)]
        cells = [json.loads(path.read_text()) for path in paths]
        return Result(
            row, cells, sum(c["seconds"] for c in cells), [self.pictures(row, case) for case in self.members(row)]
        )

    def draw(self, row: Row, case: Case) -> Tensor:
        """[ASKS, side, side, 3] in 0..1: that row's pictures of one individual, in one sampling run."""
        side = self.settings.sampling.side
        if row.true:
            true = [case.true(ask, side, seed, row.true == OTHER).pixels for seed, ask in enumerate(case.asks)]
            return self.studio.left_by_autoencoder(scores.batch(true))
        reference = self.reference(case)
        start = start_latent(reference) if row.denoise < 1 else None
        captions = [ask.caption(case.kind) for ask in case.asks]
        model, clip, prompts = row.make(self.studio.model, self.studio.clip, reference, captions)
        seeds = [1000 * self.settings.seed + 10 * case.number + i for i in range(ASKS)]
        return self.studio.draw(model, clip, prompts, seeds, start, row.denoise)

    # --- figures -------------------------------------------------------------------------------------------------

    def judge(self, case: Case, pictures: Tensor) -> Cell:
        """All figures of one individual's pictures, one for each of its asks."""
        reading = self.taught.reader.read(pictures, [case.kind] * len(pictures))
        seen = self.outside.features(pictures, reading.subject)
        scale, crisp = self._scale(case)
        crispness = scores.crispness(pictures, reading.subject) / crisp
        found: list[Scores] = []
        for i, (ask, answers) in enumerate(zip(case.asks, reading.answers, strict=True)):
            one = scores.text(case, ask, answers)
            if ask.number == 1:
                one |= scores.kept(case, ask, answers, self.taught.confusion)
                one |= scores.surroundings(case, reading, i)
                one |= {"sharpness": float(crispness[i]), "outside": scale.score(seen[i])}
            if self.others is not None:
                picture = self.reference(case).picture[0]
                one |= self.others.score(pictures[i], picture, ask.caption(case.kind))
            found.append(one)
        return scores.mean(found)

    def _scale(self, case: Case) -> tuple[Scale, float]:
        """The outside judge's scale for that individual, and how crisp true pictures of it are."""
        if case not in self._scales:
            side = self.settings.sampling.side
            own, crisp = self._true(case.kind, [case.true(case.asks[i % 2], side, i).pixels for i in OWN])
            if case.kind not in self._others:
                others = strangers(case.kind, side, STRANGERS)
                self._others[case.kind] = self._true(case.kind, [p.pixels for p in others])[0]
            self._scales[case] = Scale(own, self._others[case.kind]), crisp
        return self._scales[case]

    def _true(self, kind: str, pictures: Sequence[np.ndarray]) -> tuple[Tensor, float]:
        left = self.studio.left_by_autoencoder(scores.batch(pictures))
        subject = self.taught.reader.read(left, [kind] * len(left)).subject
        return self.outside.features(left, subject), float(scores.crispness(left, subject).mean())


def run_rows(bench: Bench, rows: Sequence[Row]) -> list[Result]:
    """Every row, what is kept as it is; tells how long the rest will take."""
    results: list[Result] = []
    pace, todo = 0.0, {row.name: len(bench.missing(row)) for row in rows}
    say(f"{len(rows)} rows, {sum(not n for n in todo.values())} of them kept from before")
    for row in rows:
        number, begun = todo.pop(row.name), time.monotonic()
        if number:
            left = f", about {(number + sum(todo.values())) * pace / 60:.0f} min" if pace else ""
            say(f"{row.name}: {number} individuals to draw; {sum(map(bool, todo.values()))} rows after it{left}")
        results.append(bench.run(row))
        pace = (time.monotonic() - begun) / number if number else pace
        say("  " + line(results[-1]))
    return results


def measures(results: Sequence[Result]) -> list[str]:
    """Names of the figures that the cells have, in the order of the table."""
    first = [scores.ALL, *scores.PARTS, "text", "kind", "scene", "count", "pose", "colour", "recolour"]
    first += ["bleed", "leak", "size", "sharpness", "outside"]
    found = {name for result in results for cell in result.cells for name in cell} - {"row", "individual", "seconds"}
    return [name for name in (*first, *sorted(found - {*first})) if name in found]


def values(result: Result, measure: str) -> dict[str, float]:
    """That figure by individual, of those that have it."""
    return {cell["individual"]: cell[measure] for cell in result.cells if measure in cell}


def line(result: Result) -> str:
    names = (scores.ALL, *scores.PARTS, "text", "bleed", "size", "outside")
    means = [f"{name} {np.mean(list(found.values())):.2f}" for name in names if (found := values(result, name))]
    return f"{result.row.name}: {', '.join(means)}"


def _write(path: Path, told: dict[str, Any]) -> None:
    write_whole(path, lambda part: part.write_text(json.dumps(told)))


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


@cache
def _file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else ""


@cache
def _drawing() -> str:
    """The pack's own files, and the lab's that draw: pictures of other code are other pictures."""
    return _of([*(ROOT / "dreamtuner_core").rglob("*.py"), *(HERE / f"{name}.py" for name in DRAWING)])


@cache
def _judging() -> str:
    return _of([HERE / f"{name}.py" for name in JUDGING])


def _of(files: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:16]
