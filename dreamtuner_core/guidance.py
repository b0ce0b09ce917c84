"""Interleaved guidance (section 3.2, Eq. 4-6).

    lambda <= p_r :  eps = w_r eps(x_t, c, x^r_{t-dt}, t) - (w_r - 1) eps(x_t, c, none, t)            (4)
    else          :  eps = w_c eps(x_t, c, x^r_{t-dt}, t) - (w_c - 1) eps(x_t, uc, x^r_{t+dt'}, t)    (5)

Both have the form of classifier-free guidance, so the host's own CFG computes them: (5) is its usual step, (4) is a
step whose negative side is the same text without the reference, at scale w_r.

**Ours**, not the paper's: the negative side of (5), and of plain classifier-free guidance, may read the reference with
a share of w_ref, `negative_weight`. If both sides read it equally (a share of 1, dt' = 0), guidance amplifies the text
but not the reference; with 0 the negative side does not read it, as in (4).
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from .ranges import check_number

TIMESTEPS = 1000  # dt and dt' are counted in these, whatever the number of sampling steps


@dataclass(frozen=True)
class Guidance:
    """reference_scale: w_r, 1 has no effect. reference_probability: p_r in 0..1.

    dt, dt_uncond: 0..1000 timesteps; how much less noise the reference has on the positive side, and how much more on
    the negative side. Raises ValueError, in one sentence, for a value out of range.
    """

    reference_scale: float
    reference_probability: float
    dt: float
    dt_uncond: float

    def __post_init__(self) -> None:
        for name, low, high in (
            ("reference_scale", 0.0, 100.0),
            ("reference_probability", 0.0, 1.0),
            ("dt", 0.0, TIMESTEPS),
            ("dt_uncond", 0.0, TIMESTEPS),
        ):
            check_number(name, getattr(self, name), low, high)

    def toward_reference(self, seed: int, step_sigma: float) -> bool:
        """Eq. 6's draw: True for Eq. 4, False for Eq. 5.

        lambda depends only on the sampler's seed and the sigma of the step: it is the same for every row of every
        batch, and for a run that is split in two. A second-order sampler's call at the sigma of the next step uses
        that step's draw.
        """
        lam = random.Random(f"{seed}:{step_sigma:.5e}").random()
        return lam < self.reference_probability


def step_sigma(sigma: float, schedule: Sequence[float]) -> float:
    """The sigma at which the current step began, for a call of the model at sigma.

    schedule: the sampler's sigmas, falling. A sigma above them all (churn) belongs to the first step.
    """
    begun = [s for s in schedule if s >= sigma * (1 - 1e-4)]
    return min(begun) if begun else max(schedule, default=sigma)


def shift_sigma(sigma: float, timesteps: float, sigmas: Sequence[float]) -> float:
    """The noise level that many timesteps above sigma (noisier) or, below zero, under it (cleaner).

    sigmas: the model's TIMESTEPS training levels, rising. Interpolated in log sigma, clamped to the table's ends.
    """
    if timesteps == 0:
        return sigma
    last = len(sigmas) - 1
    shifted = min(max(position(sigma, sigmas) + timesteps * len(sigmas) / TIMESTEPS, 0.0), float(last))
    below = min(int(shifted), last - 1)
    low, high = math.log(sigmas[below]), math.log(sigmas[below + 1])
    return math.exp(low + (shifted - below) * (high - low))


def position(sigma: float, sigmas: Sequence[float]) -> float:
    """The position of sigma in the table, 0..len(sigmas) - 1, interpolated by its logarithm."""
    last, sigma = len(sigmas) - 1, min(max(sigma, sigmas[0]), sigmas[-1])
    above = min(bisect_right(sigmas, sigma), last)
    low, high = math.log(sigmas[above - 1]), math.log(sigmas[above])
    return above - 1 + (math.log(sigma) - low) / (high - low)
