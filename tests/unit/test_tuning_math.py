"""Subject tuning without a host: every formula against a plain float64 writing of it, and what a loop must keep."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from dreamtuner_core.rights import Rights
from dreamtuner_core.tuning.config import RATES, TuningConfig, milestones, warm_up
from dreamtuner_core.tuning.loop import Group, Tuning
from dreamtuner_core.tuning.losses import min_snr, pair_loss, row_losses, target
from dreamtuner_core.tuning.pairs import Draw, Pairs
from dreamtuner_core.tuning.report import report, smoothed

LEVELS = torch.linspace(0.03, 14.0, 50, dtype=torch.float64)
SHAPE = (3, 4, 5)  # C, h, w


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(regular: int = 3, masked: bool = False) -> Pairs:
    reference = random(1, *SHAPE)
    others = random(regular, 1, *SHAPE, seed=1)
    mask = (random(1, 1, *SHAPE[1:], seed=2) > 0).double()
    return Pairs(
        torch.cat([reference, reference.flip(-1)]),
        torch.cat([others, others.flip(-1)], dim=1),
        torch.cat([mask, mask.flip(-1)]) if masked else None,
    )


def linear_tuning(config: TuningConfig, of: Pairs, parametrisation: str = "eps") -> Tuning:
    """Learns y = a x + b s + w (w on row 0 alone, as S* is): small enough to be written down."""
    a, b, w = (Parameter(torch.tensor(x, dtype=torch.float64)) for x in (0.3, -0.1, 0.2))

    def predict(noisy: Tensor, sigma: Tensor, draw: Draw) -> Tensor:
        word = torch.tensor([1.0, 0.0], dtype=torch.float64)[: len(noisy)]
        return a * noisy + (b * sigma + w * word)[:, None, None, None]

    groups = [Group({"a": a, "b": b}, config.rate), Group({"w": w}, config.word_rate)]
    return Tuning(config, groups, of, LEVELS, parametrisation, predict)


# --- the losses against their formulas -------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.03, 0.7, 14.0])
def test_both_targets_say_the_same_x0(sigma: float) -> None:
    """The host's own formulas, written down: x0 = x - sigma e, and x0 = a^2 x - a sigma v, a^2 = 1 / (1 + sigma^2)."""
    latent, noise = random(1, *SHAPE), random(1, *SHAPE, seed=1)
    level = torch.tensor([sigma], dtype=torch.float64)
    noisy = latent + sigma * noise
    a = 1 / math.sqrt(1 + sigma**2)
    torch.testing.assert_close(noisy - sigma * target("eps", latent, noise, level), latent)
    torch.testing.assert_close(a**2 * noisy - a * sigma * target("v", latent, noise, level), latent)


def test_another_parametrisation_is_refused() -> None:
    with pytest.raises(ValueError, match="x0"):
        target("x0", random(1, *SHAPE), random(1, *SHAPE), torch.ones(1))


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_the_error_of_x0_by_its_definition(gamma: float) -> None:
    """Hang et al.: the loss of x0 weighs min(SNR, gamma); an error d of e is sigma d of x0, one of v a sigma d."""
    sigma = torch.tensor([0.05, 0.4, 0.6, 3.0, 14.0], dtype=torch.float64)
    for parametrisation, x0_error in (("eps", sigma), ("v", sigma / torch.sqrt(1 + sigma**2))):
        wanted = torch.minimum(1 / sigma**2, torch.full_like(sigma, gamma)) * x0_error**2
        torch.testing.assert_close(min_snr(parametrisation, sigma, gamma), wanted)
    assert min_snr("v", sigma, 0).tolist() == [1] * 5


def test_masked_loss_counts_the_reference_on_the_subject_alone() -> None:
    said, wanted = random(2, *SHAPE), random(2, *SHAPE, seed=1)
    mask = (random(1, *SHAPE[1:], seed=2) > 0).double()
    losses = row_losses(said, wanted, mask)
    errors = [
        (said[0, c, y, x] - wanted[0, c, y, x]) ** 2
        for c in range(3)
        for y in range(4)
        for x in range(5)
        if mask[0, y, x]
    ]
    assert float(losses[0]) == pytest.approx(float(sum(errors)) / len(errors), rel=1e-5)
    assert float(losses[1]) == pytest.approx(float(((said[1] - wanted[1]) ** 2).mean()), rel=1e-5)
    elsewhere = said.clone()
    elsewhere[0] += 100 * (1 - mask)
    torch.testing.assert_close(row_losses(elsewhere, wanted, mask), losses)


def test_prior_term() -> None:
    losses, weights = torch.tensor([2.0, 3.0]), torch.tensor([0.5, 0.25])
    assert float(pair_loss(losses, weights, 4.0)) == 0.5 * 2 + 4 * 0.25 * 3
    assert float(pair_loss(losses[:1], weights[:1], 4.0)) == 1.0


@pytest.mark.parametrize("parametrisation", ["eps", "v"])
@pytest.mark.parametrize(
    "options",
    [{}, {"min_snr": 5.0}, {"masked_loss": True}, {"prior_weight": 0.3}, {"regular_pictures": 0}, {"accumulation": 3}],
    ids=lambda options: next(iter(options), "plain"),
)
def test_one_step_is_adam_on_the_loss_written_down(parametrisation: str, options: dict) -> None:
    """Forward, loss, gradients, clipping, warm-up and AdamW's first step, written in float64 for a linear network."""
    config = TuningConfig(learning_rate=1e-2, **options)
    of = pairs(config.regular_pictures and 3, masked=True)
    tuning = linear_tuning(config, of, parametrisation)
    a, b, w = (float(p.detach()) for p in tuning.parameters.values())

    gradient, loss = [0.0, 0.0, 0.0], 0.0
    for part in range(config.accumulation):
        draw = of.draw(config.seed, 0, part, len(LEVELS))
        rows = [of.reference[int(draw.flip[0])]]
        if config.regular_pictures:
            rows.append(of.regular[draw.regular, int(draw.flip[1])])
        for row, x0 in enumerate(rows):
            s, e = float(LEVELS[draw.level[row]]), draw.noise[row].double()
            wanted = e if parametrisation == "eps" else (e - s * x0) / math.sqrt(1 + s * s)
            x = x0 + s * e
            error = a * x + b * s + (w if row == 0 else 0.0) - wanted
            counted = torch.ones_like(x)
            if config.masked_loss and row == 0:
                assert of.mask is not None
                counted = of.mask[int(draw.flip[0])].expand_as(x)
            weight = 1.0 if row == 0 else config.prior_weight
            if config.min_snr:
                snr = 1 / s**2
                weight *= min(snr, config.min_snr) / (snr if parametrisation == "eps" else snr + 1)
            weight /= config.accumulation
            mean = lambda values, counted=counted: float((values * counted).sum() / counted.sum())  # noqa: E731
            loss += weight * mean(error**2)
            slopes = [mean(2 * error * x), mean(2 * error * s), mean(2 * error) if row == 0 else 0.0]
            gradient = [g + weight * d for g, d in zip(gradient, slopes, strict=True)]

    assert tuning.advance() == pytest.approx(loss, rel=1e-10)
    norm = math.sqrt(sum(g * g for g in gradient))
    clipped = [g * min(1.0, 1.0 / (norm + 1e-6)) for g in gradient]
    rates = [config.rate * warm_up(0)] * 2 + [config.word_rate * warm_up(0)]
    for before, g, rate, after in zip((a, b, w), clipped, rates, tuning.parameters.values(), strict=True):
        assert float(after.grad) == pytest.approx(g, rel=1e-10)
        assert float(after.detach()) == pytest.approx(before - rate * g / (abs(g) + 1e-8), rel=1e-12)


@pytest.mark.parametrize(("count", "shares"), [(32, (16, 16)), (3, (2, 1)), (1, (1, 0)), (0, (0, 0))])
def test_both_is_half_and_half(count: int, shares: tuple[int, int]) -> None:
    assert TuningConfig(regular_pictures=count, regular_from="both").shares == shares
    assert TuningConfig(regular_pictures=count).shares == (count, 0)
    assert TuningConfig(regular_pictures=count, regular_from="class").shares == (0, count)


def test_an_encoder_learns_at_the_rate_of_whole_weights() -> None:
    assert TuningConfig(encoder_resblocks=True).encoder_rate == pytest.approx(1e-6)


# --- draws, schedule, state ------------------------------------------------------------------------------------------


def test_draws_depend_on_seed_step_and_part_alone() -> None:
    of = pairs()
    one, same = of.draw(1, 2, 3, 50), of.draw(1, 2, 3, 50)
    assert torch.equal(one.noise, same.noise)
    assert (one.regular, one.level.tolist(), one.flip.tolist()) == (
        same.regular,
        same.level.tolist(),
        same.flip.tolist(),
    )
    for other in (of.draw(2, 2, 3, 50), of.draw(1, 3, 3, 50), of.draw(1, 2, 4, 50)):
        assert not torch.equal(one.noise, other.noise)


def test_draws_are_fair() -> None:
    draws = [pairs(4).draw(0, step, 0, 10) for step in range(600)]
    flips = torch.stack([d.flip for d in draws]).float().mean(0)
    assert flips.tolist() == pytest.approx([0.5, 0.5], abs=0.07)
    for counts in (
        torch.tensor([d.regular for d in draws]).bincount(),
        torch.stack([d.level for d in draws]).flatten().bincount(),
    ):
        assert counts.min() > 0.6 * counts.float().mean()


def test_flips_turn_latent_and_mask_together() -> None:
    of = pairs(masked=True)
    flipped = next(d for d in (of.draw(0, step, 0, 10) for step in range(100)) if d.flip.tolist() == [1, 0])
    assert torch.equal(of.latents(flipped)[0], of.reference[0].flip(-1))
    assert of.mask is not None
    counted = of.counted(flipped)
    assert counted is not None
    assert torch.equal(counted, of.mask[0].flip(-1))


def test_schedule_rises_and_stays() -> None:
    rates = [warm_up(step) for step in range(30)]
    assert rates[:3] == [0.1, 0.2, pytest.approx(0.3)]
    assert set(rates[9:]) == {1.0}


def test_milestones() -> None:
    assert milestones(400) == [0, 100, 200, 300, 400]
    assert milestones(2) == [0, 1, 2]
    assert milestones(1) == [0, 1]


def test_a_resumed_tuning_is_bit_identical() -> None:
    config = TuningConfig(seed=5, accumulation=2)
    whole, first, second = (linear_tuning(config, pairs()) for _ in range(3))
    for _ in range(6):
        whole.advance()
    for _ in range(2):
        first.advance()
    second.load_state(first.state())
    for _ in range(4):
        second.advance()
    assert second.losses == whole.losses
    ended, wanted = second.state(), whole.state()
    assert ended.keys() == wanted.keys()
    assert all(torch.equal(ended[name], wanted[name]) for name in wanted)


def test_a_state_of_another_tuning_is_refused_and_changes_nothing() -> None:
    tuning = linear_tuning(TuningConfig(), pairs())
    before, other = tuning.state(), tuning.state()
    other["parameter.z"] = other.pop("parameter.a")
    for odd in (
        other,
        before | {"parameter.a": before["parameter.a"] / 0},
        before | {"losses": torch.tensor([math.nan], dtype=torch.float64)},
        before | {"strange": torch.zeros(1)},
    ):
        with pytest.raises(ValueError, match=r"damaged, or has other parameters.*take another name"):
            tuning.load_state(odd)
    assert all(torch.equal(x, before[name]) for name, x in tuning.state().items())


def test_a_loss_that_is_no_number_stops_before_anything_is_learned() -> None:
    broken = pairs()
    tuning = linear_tuning(TuningConfig(), Pairs(broken.reference * math.inf, broken.regular))
    before = tuning.state()
    with pytest.raises(ValueError, match=r"not finite.*learning rates"):
        tuning.advance()
    assert tuning.step == 0
    assert all(torch.equal(x, before[name]) for name, x in tuning.state().items())


def test_a_gradient_that_is_no_number_stops_before_anything_is_learned() -> None:
    """The loss may be finite still: a square root's slope at nothing is not."""
    tuning = linear_tuning(TuningConfig(), pairs())
    predict = tuning.predict
    tuning.predict = lambda *told: (said := predict(*told)) + (said * 0).sqrt()
    before = tuning.state()
    with pytest.raises(ValueError, match=r"its gradient is not finite.*learning rates"):
        tuning.advance()
    assert tuning.step == 0
    assert all(torch.equal(x, before[name]) for name, x in tuning.state().items())


def test_an_exception_within_a_step_leaves_the_state() -> None:
    """An interrupt comes from inside the network, also half way through accumulation."""
    tuning = linear_tuning(TuningConfig(accumulation=2), pairs())
    tuning.advance()
    before, predict, calls = tuning.state(), tuning.predict, []

    def interrupted(noisy: Tensor, sigma: Tensor, draw: Draw) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(noisy, sigma, draw)

    tuning.predict = interrupted
    with pytest.raises(KeyboardInterrupt):
        tuning.advance()
    assert all(torch.equal(x, before[name]) for name, x in tuning.state().items())
    tuning.predict = predict
    tuning.advance()
    unbroken = linear_tuning(TuningConfig(accumulation=2), pairs())
    for _ in range(2):
        unbroken.advance()
    assert unbroken.losses == tuning.losses


# --- settings, report, rights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("seed", -1), ("rank", 0), ("learning_rate", math.nan), ("word_rate", 2.0), ("prior_weight", -1.0),
     ("method", "lokr"), ("precision", "fp16"), ("accumulation", 0), ("min_snr", math.inf), ("regular_pictures", -1)],
)  # fmt: skip
def test_settings_refuse_nonsense(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        TuningConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "own"), [("full", 1e-6), ("lora", 3e-4)])
def test_rates(method: str, own: float) -> None:
    """The paper's for all weights; the encoder's ResBlocks are whole weights whatever the method."""
    assert TuningConfig(method=method).rate == own
    assert TuningConfig(method=method, learning_rate=2 * own).rate == 2 * own
    assert TuningConfig(method=method).encoder_rate == pytest.approx(1e-6)
    assert TuningConfig(method=method, learning_rate=2 * own).encoder_rate == pytest.approx(2e-6)


def test_settings_that_change_no_step_are_left_out_of_the_outcome() -> None:
    same = TuningConfig(steps=7, checkpoint_interval=3, gradient_checkpointing=False, learning_rate=RATES["lora"])
    assert TuningConfig().outcome() == same.outcome()
    assert TuningConfig().outcome() != TuningConfig(seed=1).outcome()


def test_report_shows_loss_and_samples() -> None:
    samples = {step: torch.full((2, 16, 16, 3), 40 * i, dtype=torch.uint8) for i, step in enumerate((0, 5, 10))}
    page = report("a teapot — ö", [1.0, 0.5, 0.2] * 4, samples, ["one", "two"])
    assert page.shape[0] == 1
    assert page.shape[3] == 3
    assert 0 <= float(page.min()) <= float(page.max()) == 1
    taller = report("t", [1.0], {**samples, 20: samples[10]}, ["one", "two"])
    assert taller.shape[1] > page.shape[1]
    assert report("none", [], {}, ["one"]).shape[2] == page.shape[2]


def test_smoothed_is_the_mean_of_the_last() -> None:
    assert smoothed([1.0, 3.0, 5.0, 7.0], window=2) == [1.0, 2.0, 4.0, 6.0]


def test_rights() -> None:
    import datetime

    rights = Rights("Ada", "one poster", "2030-12-31")
    assert not rights.ended(datetime.date(2030, 12, 31))
    assert rights.ended(datetime.date(2031, 1, 1))
    assert (
        rights.as_text(datetime.date(2031, 1, 1))
        == "Owner: Ada\nAllowed: one poster\nUntil: 2030-12-31 (this day is past)"
    )
    assert Rights().as_text(datetime.date(2031, 1, 1)) == ""
    with pytest.raises(ValueError, match="until"):
        Rights(until="next week")
