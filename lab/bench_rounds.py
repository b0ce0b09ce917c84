"""Reproducible ratios of running times: runs in turns, round by round, between two plain ones.

A round is plain, every other run once, plain again. A run's ratio in a round is over the mean of its two plain runs,
which cancels slow changes of the machine's speed; plain again over plain is the noise. The figure is the median over
the rounds, with a 95 % confidence interval that holds for any distribution of the noise (the interval of order
statistics, the inverse of a sign test). Rounds go on until every interval is narrow.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MIB = 2**20
WATCH_EVERY = 0.02  # seconds between two readings of the process's memory
CONFIDENCE = 0.95
FEWEST = 6  # rounds: with fewer, even the interval from the smallest to the largest has less than 95 % confidence
NARROW = 0.05  # width of an interval, as a share of its median
PLAIN, AGAIN = "plain", "plain again"


@dataclass(frozen=True)
class Limits:
    """When rounds end: all intervals are narrow, or after so many rounds or seconds. fewest: rounds in any case."""

    fewest: int = FEWEST
    most: int = 24
    seconds: float = math.inf


@dataclass(frozen=True)
class Measured:
    """One run. cpu_seconds: of all threads."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Ratio:
    """wall, cpu: medians over the rounds, and their 95 % confidence intervals."""

    wall: float
    cpu: float
    interval: tuple[float, float]
    cpu_interval: tuple[float, float]

    @property
    def narrow(self) -> bool:
        return self.interval[1] - self.interval[0] <= NARROW * self.wall


class Rounds:
    """The measurements, round by round: of each run by name, including PLAIN and AGAIN."""

    def __init__(self, rounds: Sequence[Mapping[str, Measured]]) -> None:
        self.rounds = list(rounds)

    def ratio(self, name: str) -> Ratio:
        """The ratio of that run to the plain ones; AGAIN is compared with PLAIN alone."""
        wall, cpu = (self._ratios(name, clock) for clock in ("seconds", "cpu_seconds"))
        return Ratio(statistics.median(wall), statistics.median(cpu), interval(wall), interval(cpu))

    def plain(self, of: str) -> list[float]:
        """That number of every plain run."""
        return [getattr(taken[name], of) for taken in self.rounds for name in (PLAIN, AGAIN)]

    def peak_mib(self, name: str) -> float:
        return max(taken[name].peak_mib for taken in self.rounds)

    def row(self, name: str) -> dict[str, Any]:
        """The figures of that run, for the JSON."""
        found, again = self.ratio(name), self.ratio(AGAIN)
        return {
            "ratio": found.wall,
            "spread": found.interval[1] - found.interval[0],
            "wall_ratio": found.wall,
            "cpu_ratio": found.cpu,
            "interval": found.interval,
            "cpu_interval": found.cpu_interval,
            "plain_again": again.wall,
            "plain_again_interval": again.interval,
            "plain_again_cpu": again.cpu,
            "rounds": len(self.rounds),
            "narrow": found.narrow,
            "plain_seconds": statistics.median(self.plain("seconds")),
            "plain_cpu_seconds": statistics.median(self.plain("cpu_seconds")),
            "peak_mib": self.peak_mib(name),
            "plain_peak_mib": max(self.plain("peak_mib")),
            "ratios": self._ratios(name, "seconds"),
            "cpu_ratios": self._ratios(name, "cpu_seconds"),
        }

    def _ratios(self, name: str, clock: str) -> list[float]:
        found = []
        for taken in self.rounds:
            plain, again, run = (getattr(taken[n], clock) for n in (PLAIN, AGAIN, name))
            found.append(run / (plain if name == AGAIN else (plain + again) / 2))
        return found


def take(plain: Callable[[], Any], runs: Mapping[str, Callable[[], Any]], limits: Limits, device: Any) -> Rounds:
    """Rounds of these runs, in their order, after one of each to warm up."""
    order = {PLAIN: plain, **runs, AGAIN: plain}
    for run in order.values():
        run()
    end, rounds = time.perf_counter() + limits.seconds, Rounds([])
    while len(rounds.rounds) < limits.most:
        rounds.rounds.append({name: measured(run, device) for name, run in order.items()})
        done = all(rounds.ratio(name).narrow for name in runs) or time.perf_counter() > end
        if done and len(rounds.rounds) >= limits.fewest:
            break
    return rounds


def measured(run: Callable[[], Any], device: Any) -> Measured:
    """One run's time, and its peak of memory."""
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with _peak(device) as peak_mib:
        wait()
        start, cpu_start = time.perf_counter(), time.process_time()
        run()
        wait()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return Measured(seconds, cpu_seconds, peak_mib())


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The narrowest pair of order statistics around the median with CONFIDENCE; the outermost pair if none has it."""
    ordered, n = sorted(values), len(values)
    left_out = 0  # at either end
    outside = 2 * 0.5**n  # the probability that the median is outside the rest
    while (outside := outside + 2 * math.comb(n, left_out + 1) * 0.5**n) <= 1 - CONFIDENCE:
        left_out += 1
    return ordered[left_out], ordered[n - 1 - left_out]


@contextlib.contextmanager
def _peak(device: Any) -> Iterator[Callable[[], float]]:
    """A context that gives a function; after its end, the function returns the peak of memory inside it, in MiB."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device) / MIB
        return
    import psutil

    process, done = psutil.Process(), threading.Event()
    most = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(WATCH_EVERY):
            most.append(max(most.pop(), process.memory_info().rss))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: most[0] / MIB
    finally:
        done.set()
        watcher.join()
