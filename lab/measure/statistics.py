"""Means with their intervals, and what a difference between two rows amounts to.

Pictures of one drawing are no independent samples: what counts is how the drawings' means scatter, by Student's t, for
a bootstrap over so few of them would be far too sure.
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
    """The mean over groups (drawings), and where it may lie if others of the kind had been drawn.

    groups: to which drawing each value belongs. NaN with one group alone, which says nothing about others.
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


def frechet_distance(a: np.ndarray, b: np.ndarray, axes: np.ndarray) -> float:
    """Frechet distance of two normal distributions fitted to features [N, D], on the given axes [D, K].

    The formula is FID's (Heusel et al., arXiv 1706.08500, Eq. 6), the features are not Inception's. It shrinks as N
    grows, so only rows of equal N compare.
    """
    a, b = a @ axes, b @ axes
    root = _root(np.cov(a.T))
    both = np.linalg.eigvalsh(root @ np.cov(b.T) @ root).clip(min=0)  # of the same trace as the root of the product
    spread = np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * np.sqrt(both).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + spread)


def _root(matrix: np.ndarray) -> np.ndarray:
    """The root of a symmetric matrix that has no eigenvalue below zero."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def principal_axes(x: np.ndarray, count: int) -> np.ndarray:
    """[D, count] directions in which the features [N, D] spread most."""
    return np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:count].T
