"""Means with their intervals, and what a difference between two rows amounts to.

Pictures of one individual are no independent samples: what counts is how the individuals' means scatter, by Student's
t, for a bootstrap over so few of them would be far too sure.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(values: Sequence[float], groups: Sequence[Hashable]) -> Interval:
    """The mean over groups (individuals), and where it may lie if others of the kind had been drawn.

    groups: to which individual each value belongs. NaN with one group alone, which says nothing about others.
    """
    means = np.array([np.mean([v for v, g in zip(values, groups) if g == name]) for name in dict.fromkeys(groups)])
    mean, count = float(means.mean()), len(means)
    if count < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1) * means.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half)


def share(successes: int, count: int) -> Interval:
    """A fraction and its Wilson interval, for pictures that are independent of each other."""
    z, p = 1.959964, successes / count
    centre, spread = p + z * z / (2 * count), z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return Interval(
        p, max(0.0, (centre - spread) / (1 + z * z / count)), min(1.0, (centre + spread) / (1 + z * z / count))
    )
