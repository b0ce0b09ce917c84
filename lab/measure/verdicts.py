"""Whether the rows show what was stated of them beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lab.measure.bench import Result, values
from lab.measure.rows import LESS, MORE, NO_LESS, Expect
from lab.measure.statistics import Interval, interval

HOLDS, FAILS, NOISE, ABSENT = "holds", "does not hold", "within the noise", "not run"


@dataclass(frozen=True)
class Verdict:
    """What became of one statement. difference: of the two rows' figure, by individual; None where not run."""

    row: str
    stated: Expect
    difference: Interval | None
    said: str

    def __str__(self) -> str:
        margin = f" (but for {self.stated.margin:g})" if self.stated.margin else ""
        figures = "" if self.difference is None else f", {self.difference}"
        stated = f"{self.stated.measure} {self.stated.relation} than in {self.stated.than}{margin}"
        return f"{self.row}: {stated}: {self.said}{figures}"


def difference(a: Result, b: Result, measure: str) -> Interval:
    """a - b, paired: over the individuals that both rows have."""
    x, y = values(a, measure), values(b, measure)
    both = [name for name in x if name in y]
    return interval([x[name] - y[name] for name in both], both)


def judged(stated: Expect, found: Interval) -> str:
    """A statement holds where the whole interval agrees with it, and fails where none of it does.

    Where all individuals say the very same, nothing tells what others would say: that is within the noise.
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
    """All statements of the rows in `results`, by name."""
    found = []
    for name, result in results.items():
        for stated in result.row.expects:
            other = results.get(stated.than)
            if other is None:
                found.append(Verdict(name, stated, None, ABSENT))
                continue
            gap = difference(result, other, stated.measure)
            found.append(Verdict(name, stated, gap, judged(stated, gap)))
    return found
