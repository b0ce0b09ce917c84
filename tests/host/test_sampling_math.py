"""Small U-Nets of all families, sampled by the host with the pack's nodes, against the plain writing of Eq. 3 to 6."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from dreamtuner_pack.dreamtuner_core.guidance import Guidance
from families import SHAPES, text
from graph import SEED, difference, sample, shared_model
from sampling_cases import CASES, EVERYTHING, STEPS, by_the_host, plainly, plainly_in_fp32

every_case = pytest.mark.parametrize("name", CASES)
every_family = pytest.mark.parametrize("family", SHAPES)


@every_case
@every_family
def test_the_host_samples_what_the_method_writes(name: str, family: str) -> None:
    expected = plainly_in_fp32(name, family)
    assert expected.isfinite().all()
    assert difference(by_the_host(CASES[name], family, torch.float32), expected) < 1e-5


@pytest.mark.parametrize("name", ["hard mask", "soft region", "two subjects, two regions", "v-prediction", EVERYTHING])
@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_and_to_the_rounding_of_the_type(name: str, family: str, dtype: torch.dtype) -> None:
    """No further from fp32 than the plain writing itself is in that type (seen: 0.9 to 1.15 of it)."""
    case, exact = CASES[name], plainly_in_fp32(name, family)
    rounding = difference(plainly(case, family, dtype), exact)
    assert difference(by_the_host(case, family, dtype), exact) < 1.4 * rounding


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_weights_may_be_kept_in_another_type(family: str, dtype: torch.dtype) -> None:
    """The host casts them at each use, and all else is in the type it computes in."""
    case, cast = CASES[EVERYTHING], {"computed_in": torch.float32}
    assert difference(by_the_host(case, family, dtype, **cast), plainly(case, family, dtype, **cast)) < 1e-5


def test_every_case_is_a_picture_of_its_own() -> None:
    """Else two cases would test the same thing, or one of them nothing."""
    known = {"batch of two", "Eq. 5 alone", "Eq. 4 alone, cfg 1"}  # others' first rows, by what they mean
    known |= {"negative weight 0, cfg 1"}
    known |= {"sizes that do not halve"}  # cannot be compared
    pictures = {name: plainly_in_fp32(name, "sd1")[:1] for name in CASES.keys() - known}
    pictures["without the pack"] = sample(shared_model("sd1"), text("sd1", 1), text("sd1", 2), steps=STEPS)
    alike = [(a, b) for a, b in combinations(sorted(pictures), 2) if difference(pictures[a], pictures[b]) < 1e-3]
    assert not alike


def test_the_mixed_cases_take_both_kinds_of_step() -> None:
    sigmas = shared_model("sd1").model.model_sampling
    levels = [float(sigmas.sigma(t)) for t in torch.linspace(999, 0, STEPS)]
    draws = {Guidance(2.0, 0.5, 0.0, 0.0).toward_reference(SEED, s) for s in levels}
    assert draws == {True, False}
