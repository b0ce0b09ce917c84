"""Eq. 6's draw, the step an evaluation belongs to, and the shifts of the noise level."""

from __future__ import annotations

import math

import pytest
import torch

from dreamtuner_core.guidance import Guidance, shift_sigma, step_sigma

SCHEDULE = [14.6, 7.5, 3.2, 1.4, 0.6, 0.03, 0.0]


def guidance(probability: float = 0.9, **changes: float) -> Guidance:
    return Guidance(
        **{"reference_scale": 2.0, "reference_probability": probability, "dt": 0.0, "dt_uncond": 0.0} | changes
    )


def sd_sigmas() -> list[float]:
    """The training levels of SD1.x: scaled-linear betas."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, dim=0)
    return ((1 - alphas) / alphas).sqrt().tolist()


# --- Eq. 6 -----------------------------------------------------------------------------------------------------------


def test_the_draw_is_a_function_of_seed_and_step_alone() -> None:
    draws = [[guidance(0.5).toward_reference(seed, s) for s in SCHEDULE] for seed in range(20)]
    torch.manual_seed(1)
    again = [[guidance(0.5).toward_reference(seed, s) for s in SCHEDULE] for seed in range(20)]
    assert draws == again
    assert len({tuple(d) for d in draws}) > 10  # the seed matters
    assert len(set(zip(*draws))) == len(SCHEDULE)  # and so does the step


def test_the_draw_is_the_same_for_ever() -> None:
    """Shared graphs hold seeds: a change here changes their pictures."""
    drawn = "".join("tr"[guidance(0.5).toward_reference(seed, s)] for seed in range(4) for s in SCHEDULE)
    assert drawn == "rrrttttrrrtrrrttttrrrtrtrtrt"


def test_no_global_generator_is_touched() -> None:
    import random

    before = torch.get_rng_state(), random.getstate()
    guidance(0.5).toward_reference(7, 3.2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_frequency_is_p_r(probability: float) -> None:
    draws = [guidance(probability).toward_reference(seed, s) for seed in range(1000) for s in SCHEDULE[:5]]
    deviation = (probability * (1 - probability) / len(draws)) ** 0.5
    assert abs(sum(draws) / len(draws) - probability) < 4 * deviation


def test_never_and_always_are_exact() -> None:
    for seed in range(500):
        assert not guidance(0.0).toward_reference(seed, 3.2)
        assert guidance(1.0).toward_reference(seed, 3.2)


def test_more_probability_only_adds_steps() -> None:
    for seed in range(200):
        assert guidance(0.3).toward_reference(seed, 3.2) <= guidance(0.6).toward_reference(seed, 3.2)


@pytest.mark.parametrize("name", ["reference_scale", "reference_probability", "dt", "dt_uncond"])
@pytest.mark.parametrize("value", [-0.1, 1e6, math.inf, math.nan])
def test_absurd_values_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be between .* but is"):
        guidance(**{"probability": 0.5, name: value} if name != "reference_probability" else {"probability": value})


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigma", "begun"),
    [
        (14.6, 14.6),
        (3.2, 3.2),
        (3.2 * (1 + 1e-5), 3.2),  # rounding
        (3.2 * (1 - 1e-5), 3.2),
        (2.0, 3.2),  # within the step from 3.2 to 1.4, as second-order samplers evaluate
        (0.01, 0.03),
        (15.0, 14.6),  # churn
        (0.0, 0.0),
    ],
)
def test_an_evaluation_belongs_to_the_step_that_had_begun(sigma: float, begun: float) -> None:
    assert step_sigma(sigma, SCHEDULE) == begun


@pytest.mark.parametrize("cut", range(1, len(SCHEDULE) - 1))
def test_two_halves_have_the_steps_of_the_whole(cut: int) -> None:
    for evaluated in (14.6, 10.0, 7.5, 5.0, 3.2, 1.4, 1.0, 0.6, 0.1, 0.03):
        half = SCHEDULE[: cut + 1] if evaluated > SCHEDULE[cut] else SCHEDULE[cut:]
        assert step_sigma(evaluated, half) == step_sigma(evaluated, SCHEDULE)


def test_without_a_schedule_each_level_is_its_own_step() -> None:
    assert step_sigma(3.3, []) == 3.3


# --- shifts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 1, 250, 500, 998, 999])
@pytest.mark.parametrize("timesteps", [-1000, -250, -1, 1, 20, 1000])
def test_a_shift_moves_along_the_training_levels(position: int, timesteps: int) -> None:
    sigmas = sd_sigmas()
    expected = sigmas[min(max(position + timesteps, 0), 999)]
    assert shift_sigma(sigmas[position], timesteps, sigmas) == pytest.approx(expected, rel=1e-9)


def test_between_levels_it_is_linear_in_log_sigma() -> None:
    sigmas = sd_sigmas()
    halfway = math.sqrt(sigmas[300] * sigmas[301])
    assert shift_sigma(halfway, 20, sigmas) == pytest.approx(math.sqrt(sigmas[320] * sigmas[321]), rel=1e-9)
    assert shift_sigma(sigmas[300], 0.5, sigmas) == pytest.approx(halfway, rel=1e-9)


def test_no_shift_is_the_very_same_level() -> None:
    for sigma in (20.0, 3.3333333, 1e-3):
        assert shift_sigma(sigma, 0, sd_sigmas()) == sigma


def test_it_never_leaves_the_table() -> None:
    sigmas = sd_sigmas()
    assert shift_sigma(40.0, 10, sigmas) == pytest.approx(sigmas[-1])
    assert shift_sigma(1e-4, -10, sigmas) == pytest.approx(sigmas[0])


def test_timesteps_are_thousandths_of_any_table() -> None:
    coarse = sd_sigmas()[::10]  # 100 levels
    assert shift_sigma(coarse[50], 100, coarse) == pytest.approx(coarse[60], rel=1e-9)
