"""From a trial's pictures to the figures of its page. What was not measured is None."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from lab.measure.statistics import Interval, share
from lab.trial.plan import Plan
from lab.trial.record import Record, Shot


@dataclass(frozen=True)
class Way:
    """One way of drawing. good: shots that pass. seconds: of one picture, the median, without loading."""

    shots: list[Shot]
    good: list[Shot]
    seconds: float

    @property
    def rate(self) -> Interval:
        return share(len(self.good), len(self.shots))


def is_good(shot: Shot, record: Record, plan: Plan) -> bool:
    """Whether a picture has no fault and shows the subject: above the threshold of an image tower, or, without one,
    more like it than every picture of the same prompts without the pack, because the model's own keys only rank.
    """
    assert shot.score is not None
    if not shot.score["passed"] or shot.score["faults"]:
        return False
    if plan.min_likeness:
        return True
    others = [s.score["likeness"] for s in record.of("before", shot.prompt) if s.score]
    return shot.score["likeness"] > max(others)


def way(name: str, record: Record, plan: Plan) -> Way:
    shots = record.of(name)
    warm = [shot.seconds for shot in shots if not shot.first] or [shot.seconds for shot in shots]
    return Way(shots, [shot for shot in shots if is_good(shot, record, plan)], statistics.median(warm))


def by_likeness(shots: list[Shot]) -> list[Shot]:
    """Best first: those without faults before those with faults."""
    return sorted(shots, key=lambda s: (bool(s.score["faults"]), not s.score["passed"], -s.score["likeness"]))  # type: ignore[index]


def chance(plan: Plan) -> float | None:
    """How often a picture no better than those without the reference would count as good; None with a threshold."""
    return None if plan.min_likeness else 1 / (plan.seeds + 1)


def machine_minutes(of: Way) -> float | None:
    """Minutes of the machine for one good picture; None without a good one."""
    return None if not of.good else of.seconds / 60 / of.rate.mean


def next_step(of: Way, plan: Plan) -> str:
    """The key of the sentence on what to do next. A ranking alone never means that pictures are good enough."""
    luck = chance(plan) or 0.0
    if of.rate.low > max(0.4, luck):
        return "pilot" if plan.min_likeness else "look"
    if of.rate.mean > max(0.25, luck):
        return "reference" if plan.tune else "tune"
    return "stop" if plan.tune else "reference"
