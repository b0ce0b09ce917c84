"""Draws the rows and judges them; each row's result is kept, so that a stopped run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lab.host import ROOT, say
from lab.measure.eye import KEPT, SCENE_NAMES, Eye, Sight, as_floats
from lab.measure.layout import Layout
from lab.measure.likeness import MEASURES, Likeness
from lab.measure.local_models import LocalModels
from lab.measure.peers import start_latent
from lab.measure.rows import Row
from lab.measure.statistics import frechet_distance, principal_axes
from lab.measure.studio import (
    REFERENCE_SCENE,
    Reference,
    Sampling,
    Studio,
)
from lab.measure.subjects import HARD, USUAL, WORDS, Look, placed, subjects, training_looks
from lab.mini.checkpoint import write_whole
from lab.mini.compose import caption_of

VERSION = 2  # of the kept results: raise it when a figure's meaning changes
TRUE_SEED, FRECHET_AXES = 700, 16
SECONDS_A_PICTURE = 1.0  # on one quiet core, about; only for the first guess

Cell = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a table is made of. usual, hard: how many subjects of each case."""

    usual: int = 10
    hard: int = 10
    scenes: tuple[str, ...] = ("grass", "a night sky", "snow")
    seed: int = 1
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Result:
    """One row of one case.

    cells: figures of each picture. frechet: None of a single one. sheet: the pictures, a column a subject.
    """

    row: Row
    case: str
    cells: list[Cell]
    frechet: float | None
    seconds: float
    sheet: Path


class Bench:
    """The base in the host, the eye, and the subjects of one table."""

    def __init__(
        self,
        checkpoint: Path,
        settings: Settings,
        others: LocalModels | None = None,
        folder: Path = KEPT,
        eye: Eye | None = None,
    ) -> None:
        self.settings, self.others, self.folder = settings, others, folder
        self.layout = Layout(settings.sampling.side)
        self.studio = Studio(checkpoint, settings.sampling)
        self.eye = eye or Eye(settings.sampling.side, folder, leaves=self.studio.leaves)
        self.looks = {USUAL: subjects(USUAL, settings.usual), HARD: subjects(HARD, settings.hard)}
        self._likeness: dict[str, Likeness] = {}
        self._references: dict[Look, Reference] = {}
        truths = [self.eye.views(look, scene, [900]).pooled for look in training_looks() for scene in settings.scenes]
        self.truth = torch.cat(truths).numpy()
        self.axes = principal_axes(self.truth, FRECHET_AXES)

    def likeness(self, case: str) -> Likeness:
        if case not in self._likeness:
            cells = [(look, scene) for look in self.looks[case] for scene in self.settings.scenes]
            self._likeness[case] = Likeness(self.eye, cells)
        return self._likeness[case]

    def reference(self, look: Look) -> Reference:
        if look not in self._references:
            self._references[look] = self.studio.reference(look)
        return self._references[look]

    # --- rows ----------------------------------------------------------------------------------------------------

    def key(self, row: Row, case: str) -> str:
        """Everything that a row's figures depend on: host, weights, code, settings."""
        import comfyui_version

        return _digest(
            VERSION, comfyui_version.__version__, _code(), self.studio.weights, self.eye.key,
            asdict(self.settings.sampling), self.settings.scenes,
            self.settings.seed, case, [str(look) for look in self.looks[case]], row.make, row.denoise, row.true,
            self.others.key if self.others else "",
        )  # fmt: skip

    def kept(self, row: Row, case: str) -> Result | None:
        """The row as an earlier run left it, or None."""
        path = self.folder / "rows" / f"{self.key(row, case)}.json"
        sheet = path.with_suffix(".webp")
        if not path.exists() or not sheet.exists():
            return None
        found = json.loads(path.read_text())
        return Result(row, case, found["cells"], found["frechet"], found["seconds"], sheet)

    def run(self, row: Row, case: str) -> Result:
        """Draw and judge one row, and keep it."""
        begun, cells, seen, columns = time.monotonic(), [], [], []
        for number, look in enumerate(self.looks[case]):
            pictures = self.draw(row, look, number)
            sights = self.eye.see(pictures)
            named = self.eye.named(sights)
            seen.append(sights.pooled)
            columns.append(pictures.flatten(0, 1))
            for i, scene in enumerate(self.settings.scenes):
                cells.append(self.judge(sights[i], look, scene, case, named[0][i], named[1][i]))
            if len(pictures) > 1:
                for cell, variety in zip(cells[-len(pictures) :], self.layout.variety(sights.subject, look)):
                    cell["variety"] = variety
        self.forget()
        distance = frechet_distance(torch.cat(seen).numpy(), self.truth, self.axes) if len(cells) > 1 else None
        path = self.folder / "rows" / f"{self.key(row, case)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet = path.with_suffix(".webp")
        Image.fromarray((torch.cat(columns, 1) * 255).round().byte().numpy()).save(sheet, quality=88)
        result = Result(row, case, cells, distance, time.monotonic() - begun, sheet)
        kept = {"name": row.name, "cells": cells, "frechet": distance, "seconds": result.seconds}
        write_whole(path, lambda part: part.write_text(json.dumps(kept)))
        return result

    def draw(self, row: Row, look: Look, number: int) -> Tensor:
        """[scenes, side, side, 3] in 0..1: that row's pictures of one subject, in one sampling run."""
        scenes, side = self.settings.scenes, self.settings.sampling.side
        if row.true:
            true = [placed(look, scene, side, TRUE_SEED).pixels for scene in scenes]
            return self.studio.left_by_autoencoder(as_floats(np.stack(true)))
        reference = self.reference(look)
        start = start_latent(reference) if row.denoise < 1 else None
        captions = [caption_of([look.word], scene) for scene in scenes]
        model, clip, prompts = row.make(self.studio.model, self.studio.clip, reference, captions)
        seeds = [1000 * self.settings.seed + 20 * number + i for i in range(len(scenes))]
        return self.studio.draw(model, clip, prompts, seeds, start, row.denoise)

    def forget(self) -> None:
        """Free most of the features that the subjects' banks kept."""
        for reference in self._references.values():
            reference.forget()

    # --- figures -------------------------------------------------------------------------------------------------

    def judge(self, sight: Sight, look: Look, scene: str, case: str, concept: str, around: str) -> Cell:
        """All figures of one picture that was asked for as that subject on that scene."""
        cell: Cell = {"subject": str(look), "group": f"{look.concept}/{look.drawing}", "scene asked": scene}
        cell |= self.likeness(case).score(sight, look, scene)
        cell["scene"] = float(around == scene)
        if look.concept in WORDS:  # the judge knows no other
            cell["concept"] = float(concept == look.concept)
            cell["prompt"] = (cell["concept"] + cell["scene"]) / 2
        else:
            cell["prompt"] = cell["scene"]
        cell["bleed"] = float(sight.scenes[0, SCENE_NAMES.index(REFERENCE_SCENE)])
        cell["leak"] = self.layout.leak(sight.subject[0], look)
        if self.others is not None:
            cell |= self.others.score(as_floats(sight.pixels[0]), self.reference(look).picture[0], look.word, scene)
        return cell


def measures(results: Sequence[Result]) -> list[str]:
    """Names of the figures that the cells have, in the order of the table."""
    first = [*MEASURES, "concept", "scene", "prompt", "bleed", "leak", "variety"]
    found = {name for result in results for cell in result.cells for name in cell}
    rest = sorted(found - {*first, "subject", "group", "scene asked"})
    return [name for name in (*first, *rest) if name in found]


def run_rows(bench: Bench, rows: Sequence[tuple[Row, str]]) -> list[Result]:
    """Every row, kept ones as they are; tells how long the rest will take."""
    results: list[Result] = []
    todo = [pair for pair in rows if bench.kept(*pair) is None]
    pace = SECONDS_A_PICTURE
    say(f"{len(rows)} rows, {len(rows) - len(todo)} of them kept from before")
    for row, case in rows:
        result = bench.kept(row, case)
        if result is None:
            left = sum(len(bench.looks[c]) for _, c in todo) * len(bench.settings.scenes) * pace
            say(f"{row.name} ({case}); {len(todo)} rows to draw, about {math.ceil(left / 60)} min")
            result = bench.run(row, case)
            pace = result.seconds / len(result.cells)
            todo.remove((row, case))
        results.append(result)
        say("  " + line(result))
    return results


def line(result: Result) -> str:
    names = ("identity", "colour", "detail", "concept", "scene", "bleed", "leak")
    means = [f"{n} {np.mean([c[n] for c in result.cells]):.2f}" for n in names if n in result.cells[0]]
    return f"{result.row.name}: {', '.join(means)}"


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def _code() -> str:
    """The pack's own files, and the lab's that draw and judge: figures of other code are other figures."""
    told = {"__init__", "judge", "report", "statistics", "table", "verdicts"}  # of what is drawn, they only tell
    files = sorted((ROOT / "dreamtuner_core").rglob("*.py"))
    files += sorted(path for path in (ROOT / "lab" / "measure").glob("*.py") if path.stem not in told)
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
