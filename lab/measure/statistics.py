"""Means with their intervals, and what a difference between two rows amounts to.

Pictures of one drawing are no independent samples, so the bootstrap draws drawings, never single pictures.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS, LEVEL = 2000, 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(values: Sequence[float], groups: Sequence[Hashable]) -> Interval:
    """The mean of the values, and where it may lie if other groups (drawings) of the kind had been drawn.

    groups: to which drawing each value belongs. NaN with one group alone, which says nothing about others.
    """
    names = sorted(set(groups), key=str)
    sums = np.array([sum(v for v, g in zip(values, groups) if g == name) for name in names])
    counts = np.array([sum(g == name for g in groups) for name in names])
    mean = float(sums.sum() / counts.sum())
    if len(names) < 2:
        return Interval(mean, math.nan, math.nan)
    picks = np.random.default_rng(0).integers(len(names), size=(DRAWS, len(names)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high))


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
