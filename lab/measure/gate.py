"""The proof of Score Pictures, by the checkpoint's own keys: its order against what the reader sees.

Of each individual, eight pictures of one prompt at the defaults; true pictures of it, of another of its kind and of
another kind; and its first picture spoilt in four ways. `again` tells how far any order can agree: the reader against
itself, on the same pictures moved by two pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from lab.host import say
from lab.measure import scores
from lab.measure.bench import Bench
from lab.measure.cast import Case, strangers
from lab.measure.rows import Row
from lab.measure.studio import as_floats
from lab.mini.checkpoint import write_whole
from lab.world import KINDS

PICTURES, INDIVIDUALS, TRUE = 8, 12, 2
MOVED, CUT = 2, 0.25  # pixels; share of a picture's width
ASKED = {"spearman": 0.6, "lift": 0.5, "own first": 1.0, "other first": 1.0, "spoilt last": 1.0}  # at least


@dataclass(frozen=True)
class Proof:
    """One individual. kept, again, likeness: of each picture. own, other, kind: likeness of true pictures.

    spoilt_last: share of pairs in which a true picture of it comes before a spoilt one.
    """

    individual: str
    kept: list[float]
    again: list[float]
    likeness: list[float]
    own: list[float]
    other: list[float]
    kind: list[float]
    spoilt_last: float


def prove(bench: Bench, row: Row, many: int = INDIVIDUALS) -> dict[str, Any]:
    """The figures over the first individuals, and each of them; what an earlier run left is taken as it is."""
    proofs = []
    for case in bench.cases[:many]:
        path = bench.path(row, case).with_name(f"gate-{bench.path(row, case).name}")
        if not path.exists():
            told = asdict(_proof(bench, row, case, path))
            write_whole(path, lambda part, told=told: part.write_text(json.dumps(told)))  # type: ignore[misc]
        proofs.append(Proof(**json.loads(path.read_text())))
    found = summary(proofs)
    say("gate: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    return {"figures": found, "asked": ASKED, "individuals": [asdict(proof) for proof in proofs]}


def summary(proofs: Sequence[Proof]) -> dict[str, float]:
    """spearman, again: of the median individual. lift: what choosing the first gains of what the best choice would.

    own first, other first: share of pairs in which a true picture of it comes before one of another of its kind, and
    that one before one of another kind. spoilt last: share of pairs in which a true picture comes before a spoilt one.
    """
    gained = sum(p.kept[int(np.argmax(p.likeness))] - float(np.mean(p.kept)) for p in proofs)
    possible = sum(max(p.kept) - float(np.mean(p.kept)) for p in proofs)
    return {
        "spearman": _median([(p.likeness, p.kept) for p in proofs]),
        "again": _median([(p.again, p.kept) for p in proofs]),
        "lift": gained / possible if possible else 0.0,
        "own first": _before([(p.own, p.other) for p in proofs]),
        "other first": _before([(p.other, p.kind) for p in proofs]),
        "spoilt last": float(np.mean([p.spoilt_last for p in proofs])),
    }


def _median(pairs: Sequence[tuple[list[float], list[float]]]) -> float:
    """Of Spearman's correlation; an individual whose pictures are all alike has no order, and counts 0."""
    found = [stats.spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else 0.0 for a, b in pairs]
    return float(np.median(found))


def _before(pairs: Sequence[tuple[list[float], list[float]]]) -> float:
    return float(np.mean([a > b for first, second in pairs for a in first for b in second]))


def spoilt(picture: Tensor) -> dict[str, Tensor]:
    """A picture [1, H, W, 3] as no gate should let it through, by the name of what is wrong."""
    cut = round(picture.shape[2] * CUT)
    return {
        "blank": torch.full_like(picture, 0.5),
        "noise": torch.rand(picture.shape, generator=torch.Generator().manual_seed(0)),
        "burnt": ((picture - 0.5) * 6 + 0.5).clamp(0, 1),
        "cut off": torch.cat([picture[:, :, cut:], picture[:, :, :1].expand(-1, -1, cut, -1)], dim=2),
    }


def _proof(bench: Bench, row: Row, case: Case, path: Path) -> Proof:
    ask = case.asks[0]
    drawn = _drawn(bench, row, case, path.with_suffix(".webp"))

    def kept(pictures: Tensor) -> list[float]:
        answers = bench.taught.reader.read(pictures, [case.kind] * len(pictures)).answers
        return [scores.kept(case, ask, one, bench.taught.confusion)[scores.ALL] for one in answers]

    side, kinds = bench.settings.sampling.side, list(KINDS)
    another = strangers(kinds[(kinds.index(case.kind) + 1) % len(kinds)], side, TRUE)
    true = [case.true(ask, side, seed, other).pixels for other in (False, True) for seed in range(TRUE)]
    left = bench.studio.left_by_autoencoder(scores.batch([*true, *(picture.pixels for picture in another)]))
    bad = torch.cat(list(spoilt(left[:1]).values()))
    gate = _gate(bench, case, torch.cat([left, bad]))
    likeness = [score.likeness or 0.0 for score in gate.scores[: len(left)]]
    place = {picture: rank for rank, picture in enumerate(gate.order)}
    own, other, kind = (likeness[i : i + TRUE] for i in range(0, 3 * TRUE, TRUE))
    return Proof(
        individual=str(case),
        kept=kept(drawn),
        again=kept(drawn.roll((MOVED, MOVED), (1, 2))),
        likeness=[score.likeness or 0.0 for score in _gate(bench, case, drawn).scores],
        own=own,
        other=other,
        kind=kind,
        spoilt_last=float(np.mean([place[i] < place[len(left) + j] for i in range(TRUE) for j in range(len(bad))])),
    )


def _drawn(bench: Bench, row: Row, case: Case, path: Path) -> Tensor:
    """[PICTURES, side, side, 3]: of one prompt, by that row; kept beside its figures."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        prompts = [case.asks[0].caption(case.kind)] * PICTURES
        made = row.make(bench.studio.model, bench.studio.clip, bench.reference(case), prompts)
        seeds = [100_000 * bench.settings.seed + PICTURES * case.number + i for i in range(PICTURES)]
        strip = (torch.cat(list(bench.studio.draw(*made, seeds)), 1) * 255).round().byte().numpy()
        write_whole(path, lambda part: Image.fromarray(strip).save(part, "WEBP", lossless=True))
    return torch.stack(as_floats(np.asarray(Image.open(path))).chunk(PICTURES, 1))


def _gate(bench: Bench, case: Case, pictures: Tensor) -> Any:
    """What Score Pictures makes of them, by the checkpoint's own keys."""
    studio, core = bench.studio, bench.studio.core
    room = core.host.scoring.score
    towers = room.Towers(model=studio.model, vae=studio.vae)
    return room.score_pictures(pictures, bench.reference(case).subject(), towers, core.scoring.scores.Limits())
