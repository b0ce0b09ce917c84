"""Whether the rows show what was stated of them beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lab.measure.bench import Cell, Result
from lab.measure.rows import FULL, LESS, MORE, NO_LESS, PLAIN, Expect
from lab.measure.statistics import Interval, interval

HOLDS, FAILS, NOISE, ABSENT = "holds", "does not hold", "within the noise", "not run"


@dataclass(frozen=True)
class Verdict:
    """What became of one statement. difference: of the two rows' figure, picture by picture; None where not run."""

    row: str
    stated: Expect
    difference: Interval | None
    said: str

    def __str__(self) -> str:
        margin = f" (but for {self.stated.margin:g})" if self.stated.margin else ""
        figures = "" if self.difference is None else f", {self.difference}"
        stated = f"{self.stated.measure} {self.stated.relation} than in {self.stated.than}{margin}"
        return f"{self.row}: {stated}: {self.said}{figures}"


def difference(a: Sequence[Cell], b: Sequence[Cell], measure: str) -> Interval:
    """a - b, over the same subjects, scenes and seeds."""
    return interval([x[measure] - y[measure] for x, y in zip(a, b)], [x["group"] for x in a])


def judged(stated: Expect, found: Interval) -> str:
    """A statement holds where the whole interval agrees with it, and fails where none of it does.

    Where all drawings say the very same, nothing tells what others would say: that is within the noise.
    """
    if found.low == found.high:
        return NOISE
    if stated.relation in (MORE, LESS):
        sign = 1 if stated.relation == MORE else -1
        low, high = sorted((sign * found.low, sign * found.high))
        return HOLDS if low > 0 else FAILS if high < 0 else NOISE
    sign = 1 if stated.relation == NO_LESS else -1
    low, high = sorted((sign * found.low, sign * found.high))
    return HOLDS if low >= -stated.margin else FAILS if high < -stated.margin else NOISE


def verdicts(results: Mapping[str, Result]) -> list[Verdict]:
    """All statements of the rows in `results` (by name, of one case)."""
    found = []
    for name, result in results.items():
        for stated in result.row.expects:
            other = results.get(stated.than)
            if other is None:
                found.append(Verdict(name, stated, None, ABSENT))
                continue
            gap = difference(result.cells, other.cells, stated.measure)
            found.append(Verdict(name, stated, gap, judged(stated, gap)))
    return found


@dataclass(frozen=True)
class Lift:
    """How much of the way from plain text to the same drawing placed anew a row goes, and what it costs in prompt.

    reachable: what the same true pictures read once they have been through the base's own autoencoder; no picture of
    this base can be expected above that. NaN where that row was not run.
    """

    measure: str
    plain: float
    row: float
    share: float
    reachable: float
    prompt: Interval


def lift(results: Mapping[str, Result], name: str = FULL, measure: str = "identity") -> Lift | None:
    """The issue's own demand: at least half of the gap in identity, at most 2 % of prompt score lost."""
    if not {name, PLAIN} <= set(results):
        return None
    row, plain = results[name].cells, results[PLAIN].cells
    low, reached = (sum(c[measure] for c in cells) / len(cells) for cells in (plain, row))
    true = next((r.cells for r in results.values() if r.row.true), [])
    reachable = sum(c[measure] for c in true) / len(true) if true else math.nan
    return Lift(measure, low, reached, (reached - low) / (1 - low), reachable, difference(row, plain, "prompt"))
