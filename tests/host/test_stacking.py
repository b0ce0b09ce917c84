"""On one graph with everything else the host has: any order, any sampler, any size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.model_base
import comfy.ops
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from dreamtuner_pack.dreamtuner_core.attention import ReferenceTokens
from dreamtuner_pack.dreamtuner_core.host.sampling import patch as host_patch
from dreamtuner_pack.dreamtuner_core.host.sampling.patch import TokenFollower
from families import text
from graph import (
    SEED,
    attend,
    counted_passes,
    draw,
    empty_latent,
    guide,
    hard_mask,
    lora,
    shared_model,
    soft_mask,
    subject,
)
from host_graphs import GRAPHS, GUIDERS, area, combined, hooked, keyframed, lora_hook, picture
from host_patches import PATCHES, check, use
from torch import Tensor


def with_subject(model: ModelPatcher, weight: float = 3.0) -> ModelPatcher:
    return attend(model, subject("sd1", soft_mask()), weight)


def with_region(model: ModelPatcher, weight: float = 3.0) -> ModelPatcher:
    return attend(model, subject("sd1", hard_mask()), weight, region=soft_mask(96, 64))


def with_everything(model: ModelPatcher, weight: float = 3.0) -> ModelPatcher:
    """Two subjects, one in a region, and guidance."""
    return guide(attend(with_region(model, weight), subject("sd1", seed=21), weight))


OURS = {"S-S-A": with_subject, "everything": with_everything}
ours = pytest.mark.parametrize("pack", OURS.values(), ids=OURS.keys())


# --- other patches of the model, in both orders -----------------------------------------------------------------------


ORDER_MATTERS: set[str] = set()  # what the help says of order must name these


@pytest.mark.parametrize("name", PATCHES)
def test_stacks_with(name: str) -> None:
    """The pack's nodes after the other one, and before it."""
    other, model = PATCHES[name], shared_model("sd1")
    after = check(draw, with_everything, other(model))
    assert torch.equal(draw(other(with_everything(model))), after) != (name in ORDER_MATTERS)
    assert torch.equal(draw(other(with_everything(model, 0.0))), draw(other(model)))


@pytest.mark.parametrize("name", PATCHES)
def test_the_other_patch_still_works(name: str) -> None:
    """Not only is nothing broken: the other patch is seen in what S-S-A gives."""
    other, model, more = PATCHES[name], with_subject(shared_model("sd1")), {}
    if name == "differential diffusion":  # has no effect without a soft noise mask
        more = {"latent": picture() | {"noise_mask": soft_mask(96, 64)}}
    both = draw(other(model), **more)
    assert not torch.equal(both, draw(model, **more))
    assert torch.equal(draw(with_subject(other(shared_model("sd1"))), **more), both) != (name in ORDER_MATTERS)


@pytest.mark.parametrize("name", ["EasyCache", "LazyCache"])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_caches_of_whole_steps_survive_guidance(name: str, cfg: float, seed: int) -> None:
    """They keep something for each conditioning, and Eq. 4 and 5 ask the model for different ones."""
    model = guide(with_subject(shared_model("sd1")), probability=0.5)
    assert draw(PATCHES[name](model), steps=8, cfg=cfg, seed=seed).isfinite().all()


@pytest.mark.parametrize("name", ["EasyCache", "LazyCache"])
def test_a_skipped_step_computes_no_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    model = attend(PATCHES[name](shared_model("sd1")), subject("sd1"))
    model.set_model_attn2_patch(lambda q, k, v, options: (asked.append(float(options["sigmas"].max())), (q, k, v))[1])
    with counted_passes(monkeypatch) as passes:
        draw(model, steps=12, cfg=1.0)
    assert sorted(passes) == sorted(set(asked))
    assert len(passes) < 12, "nothing was skipped"


@pytest.mark.parametrize(("height", "width"), [(12, 8), (8, 20), (16, 16)])
@pytest.mark.parametrize("name", ["HyperTile", "token merging"])
def test_a_region_follows_tokens_that_are_folded_or_merged(name: str, height: int, width: int) -> None:
    [fold] = PATCHES[name](shared_model("sd1")).model_options["transformer_options"]["patches"]["attn1_patch"]
    tokens = torch.randn(3, height * width, 8, generator=torch.Generator().manual_seed(0))
    seen, follower = tokens, TokenFollower()
    for patch in follower.around([fold]):
        seen, _, _ = patch(seen, tokens, tokens, {"original_shape": [3, 4, height, width]})
    region = torch.linspace(0, 1, height * width)
    followed = follower.follow(ReferenceTokens(tokens, tokens, region, region), slice(0, len(seen))).region
    assert followed is not None
    assert followed.shape == seen.shape[:2] != tokens.shape[:2]
    rows = tokens.repeat_interleave(len(seen) // len(tokens), dim=0)
    same = (seen[:, :, None] == rows[:, None]).all(dim=-1)  # [rows, tokens now, tokens before]
    still = same.any(dim=-1)  # not merged with others
    assert still.float().mean() > 0.3
    assert torch.equal(followed[still], region.expand(len(rows), -1)[same.nonzero()[:, 0], same.nonzero()[:, 2]])


@pytest.mark.parametrize("name", ["HyperTile", "token merging", "deep shrink"])
def test_a_region_of_everything_is_no_region(name: str) -> None:
    model = PATCHES[name](shared_model("sd1"))
    everywhere = draw(attend(model, subject("sd1"), region=torch.ones(1, 96, 64)))
    torch.testing.assert_close(everywhere, draw(attend(model, subject("sd1"))), rtol=1e-4, atol=1e-3)


def test_subject_and_guidance_are_applied_in_any_order() -> None:
    model = shared_model("sd1")
    one, other = subject("sd1", soft_mask()), subject("sd1", seed=21)
    expected = draw(guide(attend(attend(model, one), other)))
    assert torch.equal(draw(attend(guide(attend(model, one)), other)), expected)
    assert torch.equal(draw(attend(attend(guide(model), one), other)), expected)
    torch.testing.assert_close(draw(guide(attend(attend(model, other), one))), expected, rtol=1e-4, atol=1e-3)


# --- regional conditionings, hooks, ControlNet, masks: what is drawn, with either model ------------------------------


@pytest.mark.parametrize("name", GRAPHS)
def test_draws_on(name: str) -> None:
    check(GRAPHS[name], with_everything)


@pytest.mark.parametrize("name", [name for name in GRAPHS if "area" in name or "mask" in name or "latents" in name])
def test_draws_in_a_region_on(name: str) -> None:
    check(GRAPHS[name], with_region)


def test_each_strength_of_a_hook_is_another_model() -> None:
    """One subject, one hook: what is kept for one strength of it is never taken for another's."""
    one, model, hooks = subject("sd1", soft_mask()), shared_model("sd1"), lora_hook(0.8)

    def drawn(subject: Any, *strengths: float) -> Tensor:
        positive = hooked(text("sd1", 1), keyframed(hooks, *strengths)) if strengths else text("sd1", 1)
        return draw(attend(model, subject), positive=positive)

    for strengths in ((), (1.0,), (0.2,), (1.0, 0.2), ()):
        assert torch.equal(drawn(one, *strengths), drawn(subject("sd1", soft_mask()), *strengths))


def test_features_seen_through_a_hook_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model, positive = with_subject(shared_model("sd1")), hooked(text("sd1", 1), lora_hook(0.8))
    draw(model, positive=positive)
    with counted_passes(monkeypatch) as computed:
        draw(model, positive=positive)
    assert not computed


def test_a_lora_hook_on_both_sides_is_the_lora() -> None:
    """The reference is seen through the same hooked weights as the picture."""
    hooks = lora_hook(0.8)
    by_hook = draw(
        with_subject(shared_model("sd1")),
        positive=hooked(text("sd1", 1), hooks),
        negative=hooked(text("sd1", 2), hooks),
    )
    by_loader = draw(with_subject(lora(shared_model("sd1"), 0.8)))
    torch.testing.assert_close(by_hook, by_loader, rtol=1e-4, atol=1e-3)


def test_an_area_over_everything_is_no_area() -> None:
    pack = with_region(shared_model("sd1"))
    whole = draw(pack, positive=area(1, 96, 64, 0, 0))
    torch.testing.assert_close(whole, draw(pack), rtol=1e-4, atol=1e-3)


def test_the_region_lies_on_the_picture_and_not_on_the_area() -> None:
    """A text whose area is the region's empty half sees no subject: there, weight 0 draws the same."""
    left = torch.zeros(1, 96, 64)
    left[:, :, :32] = 1.0
    one, half = subject("sd1"), {"positive": area(1, 96, 32, 0, 32), "negative": area(2, 96, 32, 0, 32), "cfg": 1.0}
    model = shared_model("sd1")
    without = draw(model, **half)
    torch.testing.assert_close(draw(attend(model, one, region=left), **half), without, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(draw(attend(model, one, region=1 - left), **half), without, rtol=1e-2)


def test_areas_of_one_size_have_each_their_part_of_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked about one after the other, so that what is kept of the one could be taken for the other's."""
    model = with_region(shared_model("sd1"))
    monkeypatch.setattr(model.model, "memory_required", lambda *_, **__: 1e30)
    halves = combined(area(1, 96, 32, 0, 0), area(3, 96, 32, 0, 32))
    drawn = draw(model, positive=halves)
    monkeypatch.setattr(host_patch, "LOG_MS_KEPT", 0)
    assert torch.equal(draw(model, positive=halves), drawn)


# --- samplers and schedulers -----------------------------------------------------------------------------------------


SMALL = empty_latent(1, 6, 8)


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler(sampler: str) -> None:
    steps = {"start_step": 8, "steps": 10} if sampler == "dpm_adaptive" else {}  # it takes as many as it likes
    check(partial(draw, sampler=sampler, latent=SMALL, **steps), with_everything)


@pytest.mark.parametrize("scheduler", comfy.samplers.SCHEDULER_NAMES)
def test_every_scheduler(scheduler: str) -> None:
    check(partial(draw, scheduler=scheduler, latent=SMALL), with_everything)


@pytest.mark.parametrize("cut", [1, 2, 3])
@ours
def test_two_halves_are_the_whole(pack: Callable[..., ModelPatcher], cut: int) -> None:
    """KSampler (Advanced): the first with leftover noise, the second adding none."""
    model = pack(shared_model("sd1"))
    first = draw(model, steps=4, last_step=cut)
    second = draw(model, steps=4, start_step=cut, disable_noise=True, latent={"samples": first})
    torch.testing.assert_close(second, draw(model, steps=4), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", GUIDERS)
@ours
def test_sampler_custom_advanced_with(name: str, pack: Callable[..., ModelPatcher]) -> None:
    def custom(model: ModelPatcher) -> Tensor:
        return use(
            "custom_sampler",
            "SamplerCustomAdvanced",
            noise=use("custom_sampler", "RandomNoise", noise_seed=SEED),
            guider=GUIDERS[name](model),
            sampler=use("custom_sampler", "KSamplerSelect", sampler_name="euler"),
            sigmas=use("custom_sampler", "BasicScheduler", model=model, scheduler="normal", steps=3, denoise=1.0),
            latent_image=empty_latent(),
        )["samples"]

    drawn = check(custom, pack)
    if name == "CFGGuider":
        assert torch.equal(drawn, draw(pack(shared_model("sd1"))))


@ours
def test_both_sides_in_one_batch_or_apart(pack: Callable[..., ModelPatcher], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is short the host asks for one conditioning at a time."""
    model, calls = pack(shared_model("sd1")), []
    together = draw(model)
    monkeypatch.setattr(model.model, "memory_required", lambda *_, **__: 1e30)
    model.set_model_unet_function_wrapper(
        lambda f, args: calls.append(len(args["cond_or_uncond"])) or f(args["input"], args["timestep"], **args["c"])
    )
    apart = draw(model)
    assert set(calls) == {1}
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-3)


# --- U-Nets with more input channels ---------------------------------------------------------------------------------


def with_picture(channels: int) -> dict[str, Any]:
    """InpaintModelConditioning, or InstructPixToPixConditioning, of a picture."""
    told: dict[str, Any] = {"concat_latent_image": picture()["samples"]}
    if channels == 9:
        told["concat_mask"] = hard_mask(96, 64)[None]
    return {
        "positive": [[context, more | told] for context, more in text("sd1", 1)],
        "negative": [[context, more | told] for context, more in text("sd1", 2)],
    }


@pytest.mark.parametrize("channels", [9, 8], ids=["inpainting", "ip2p"])
@ours
def test_unets_with_more_input_channels(channels: int, pack: Callable[..., ModelPatcher]) -> None:
    model = shared_model("sd1", in_channels=channels)
    for told in ({}, with_picture(channels)):
        check(partial(draw, **told), pack, model)
