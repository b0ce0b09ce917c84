"""What the method may be asked to draw, by the host with the pack's nodes and by the plain writing of Eq. 3 to 6."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import plain
import torch
from comfy.model_patcher import ModelPatcher
from dreamtuner_pack.dreamtuner_core.guidance import Guidance
from families import text
from graph import LATENT, SEED, attend, guide, hard_mask, sample, shared_model, soft_mask, subject
from plain import Applied
from torch import Tensor

STEPS = 4


EVERYTHING = "both guidances, two subjects, region"


@cache
def region(soft: bool) -> Tensor:
    height, width = (8 * side for side in LATENT)
    if soft:
        return soft_mask(height, width, seed=8)
    left = torch.zeros(1, height, width)
    left[:, :, : width // 2] = 1.0
    return left


@dataclass(frozen=True)
class Case:
    """applied: family -> the subjects. guidance: the settings of Reference Guidance, or none."""

    applied: Callable[[str], list[Applied]]
    guidance: dict[str, float] | None = None
    cfg: float = 5.0
    v_prediction: bool = False
    batch: int = 1
    size: tuple[int, int] = LATENT


def one(family: str) -> list[Applied]:
    return [Applied(subject(family, soft_mask()))]


TOWARD_TEXT = {"scale": 2.0, "probability": 0.0, "dt": 0.0, "dt_uncond": 0.0}


CASES = {
    "no mask": Case(lambda f: [Applied(subject(f))]),
    "hard mask": Case(lambda f: [Applied(subject(f, hard_mask()))]),
    "soft mask": Case(one),
    "sizes that do not halve": Case(
        lambda f: [Applied(subject(f, soft_mask(72, 56), size=(9, 7))), Applied(subject(f, size=(5, 11)))], size=(13, 9)
    ),
    "no caption": Case(lambda f: [Applied(subject(f, soft_mask(), captioned=False))]),
    "far too much weight": Case(lambda f: [Applied(subject(f, hard_mask()), 30.0)]),
    "region": Case(lambda f: [Applied(subject(f, hard_mask()), region=region(soft=False))]),
    "soft region": Case(lambda f: [Applied(subject(f, hard_mask()), region=region(soft=True))]),
    "two subjects": Case(lambda f: [Applied(subject(f, hard_mask())), Applied(subject(f, None, seed=21), 2.5)]),
    "two subjects, two regions": Case(
        lambda f: [
            Applied(subject(f, hard_mask()), region=region(soft=False)),
            Applied(subject(f, soft_mask(), seed=21), 1.5, region=1 - region(soft=False)),
        ]
    ),
    "two subjects, one after the other": Case(
        lambda f: [Applied(subject(f), end=0.5), Applied(subject(f, hard_mask(), seed=21), start=0.4)]
    ),
    "from 30 to 80 percent": Case(lambda f: [Applied(subject(f), start=0.3, end=0.8)]),
    "cfg 1": Case(one, cfg=1.0),
    "batch of two": Case(one, batch=2),
    "v-prediction": Case(one, v_prediction=True),
    "Eq. 4 alone": Case(one, TOWARD_TEXT | {"probability": 1.0}),
    "Eq. 4 alone, from 30 percent": Case(
        lambda f: [Applied(subject(f), start=0.3)], TOWARD_TEXT | {"probability": 1.0}
    ),
    "Eq. 4 alone, dt": Case(one, TOWARD_TEXT | {"probability": 1.0, "scale": 3.0, "dt": 60.0}),
    "Eq. 4 alone, w_r 1": Case(one, TOWARD_TEXT | {"probability": 1.0, "scale": 1.0, "dt": 60.0}),
    "Eq. 4 alone, cfg 1": Case(one, TOWARD_TEXT | {"probability": 1.0}, cfg=1.0),
    "Eq. 5 alone": Case(one, TOWARD_TEXT),
    "Eq. 5 alone, dt, dt'": Case(one, TOWARD_TEXT | {"dt": 30.0, "dt_uncond": 90.0}),
    "Eq. 5 alone, cfg 1": Case(one, TOWARD_TEXT | {"dt": 30.0, "dt_uncond": 90.0}, cfg=1.0),
    "negative weight 0": Case(lambda f: [Applied(subject(f, soft_mask()), negative_weight=0.0)]),
    "negative weight 0.3": Case(lambda f: [Applied(subject(f, soft_mask()), negative_weight=0.3)]),
    "negative weight 0, cfg 1": Case(lambda f: [Applied(subject(f, soft_mask()), negative_weight=0.0)], cfg=1.0),
    "negative weight 0.3, Eq. 4 and 5, dt, dt'": Case(
        lambda f: [Applied(subject(f, soft_mask()), negative_weight=0.3)],
        TOWARD_TEXT | {"probability": 0.5, "dt": 30.0, "dt_uncond": 90.0},
    ),
    "two subjects, each its negative weight, region": Case(
        lambda f: [
            Applied(subject(f), region=region(soft=False), negative_weight=0.0),
            Applied(subject(f, soft_mask(), seed=21), 2.0, negative_weight=0.6),
        ],
        TOWARD_TEXT | {"dt_uncond": 90.0},
    ),
    "both": Case(one, TOWARD_TEXT | {"probability": 0.5, "dt": 30.0, "dt_uncond": 90.0}),
    "both, from 30 percent": Case(lambda f: [Applied(subject(f), start=0.3)], TOWARD_TEXT | {"probability": 0.5}),
    "both, v-prediction, batch of two": Case(
        one, TOWARD_TEXT | {"probability": 0.5, "dt": 30.0, "dt_uncond": 90.0}, v_prediction=True, batch=2
    ),
    EVERYTHING: Case(
        lambda f: [Applied(subject(f), region=region(soft=False)), Applied(subject(f, soft_mask(), seed=21), 2.0)],
        TOWARD_TEXT | {"probability": 0.5, "dt": 30.0, "dt_uncond": 90.0},
    ),
}


def by_the_host(case: Case, family: str, dtype: torch.dtype, **more: Any) -> Tensor:
    model = patched = shared_model(family, dtype, case.v_prediction, **more)
    for a in case.applied(family):
        patched = attend(patched, a.subject, a.weight, a.start, a.end, a.region, a.negative_weight)
    if case.guidance is not None:
        patched = guide(patched, **case.guidance)
    assert patched is not model
    latent = {"samples": torch.zeros(case.batch, 4, *case.size)}
    return sample(patched, text(family, 1), text(family, 2), latent, steps=STEPS, cfg=case.cfg)


def plainly(case: Case, family: str, dtype: torch.dtype, **more: Any) -> Tensor:
    guidance = case.guidance and Guidance(*case.guidance.values())
    noise = torch.randn(case.batch, 4, *case.size, generator=torch.manual_seed(SEED))
    model: ModelPatcher = shared_model(family, dtype, case.v_prediction, **more)
    return plain.sample(
        model, text(family, 1), text(family, 2), noise, case.applied(family), guidance, SEED, STEPS, case.cfg
    )


@cache
def plainly_in_fp32(name: str, family: str) -> Tensor:
    return plainly(CASES[name], family, torch.float32)
