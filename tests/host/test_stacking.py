"""On one graph with everything else the host has: any order, any sampler, any size."""

from __future__ import annotations

import importlib
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
from comfy_api.latest import io
from dreamtuner_pack.dreamtuner_core.attention import ReferenceTokens
from dreamtuner_pack.dreamtuner_core.host.sampling.patch import TokenFollower
from families import COMMON, SHAPES, draw_weights, text
from graph import SEED, attend, empty_latent, guide, hard_mask, sample, shared_model, soft_mask, subject
from test_no_trace import counted_passes, lora
from torch import Tensor

import nodes

STEPS = 3
CPU = torch.device("cpu")
Patch = Callable[[ModelPatcher], ModelPatcher]
Draw = Callable[[ModelPatcher], Tensor]


def use(module: str, node: str, **inputs: Any) -> Any:
    """Run one of the host's own nodes, of its old or its new schema; its first output."""
    kind = getattr(importlib.import_module(module if module == "nodes" else f"comfy_extras.nodes_{module}"), node)
    new = issubclass(kind, io.ComfyNode)
    out = kind.execute(**inputs) if new else getattr(kind(), kind.FUNCTION)(**inputs)
    return (out.args if isinstance(out, io.NodeOutput) else out)[0]


def draw(model: ModelPatcher, **changes: Any) -> Tensor:
    torch.manual_seed(0)  # HyperTile and token merging draw from the global generator
    settings: dict[str, Any] = {"positive": text("sd1", 1), "negative": text("sd1", 2), "steps": STEPS}
    return sample(model, **settings | changes)


def with_subject(model: ModelPatcher, weight: float = 3.0) -> ModelPatcher:
    return attend(model, subject("sd1", soft_mask()), weight)


def with_region(model: ModelPatcher, weight: float = 3.0) -> ModelPatcher:
    return attend(model, subject("sd1", hard_mask()), weight, region=soft_mask(96, 64))


def with_everything(model: ModelPatcher, weight: float = 3.0) -> ModelPatcher:
    """Two subjects, one in a region, and guidance."""
    return guide(attend(with_region(model, weight), subject("sd1", seed=21), weight))


OURS = {"S-S-A": with_subject, "everything": with_everything}
ours = pytest.mark.parametrize("pack", OURS.values(), ids=OURS.keys())


def check(draw: Draw, pack: Callable[..., ModelPatcher], model: ModelPatcher | None = None) -> Tensor:
    """What holds on every graph: without, with, with again, with weight 0. Returns the picture with."""
    model = model or shared_model("sd1")
    without, patched = draw(model), pack(model)
    picture = draw(patched)
    assert without.isfinite().all(), "the host itself fails here"
    assert picture.isfinite().all()
    assert picture.shape == without.shape
    assert not torch.allclose(picture, without, rtol=1e-3, atol=1e-3)
    assert torch.equal(draw(patched), picture)  # kept features
    assert torch.equal(draw(pack(model)), picture)  # features computed afresh
    assert torch.equal(draw(pack(model, 0.0)), without)
    return picture


# --- other patches of the model, in both orders -----------------------------------------------------------------------


def ip_adapter(model: ModelPatcher) -> ModelPatcher:
    """As IPAdapter packs do: the cross-attentions are replaced, and read image tokens as well."""
    image_tokens = 0.5 * torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(5))

    def replaced(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        image = image_tokens[..., : q.shape[-1]].expand(len(q), -1, -1)
        return sum(optimized_attention(q, a, b, options["n_heads"]) for a, b in ((k, v), (image, -image)))

    patched = model.clone()
    for block, number in (("input", 1), ("middle", 0), ("output", 2)):
        patched.set_model_attn2_replace(replaced, block, number)
    return patched


def self_attention_of_another_pack(model: ModelPatcher) -> ModelPatcher:
    """Replaced self-attention, for one block by (block, number), for another by its index too."""

    def sharpened(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        return optimized_attention(1.3 * q, k, v, options["n_heads"])

    patched = model.clone()
    patched.set_model_attn1_replace(sharpened, "input", 1)
    patched.set_model_attn1_replace(sharpened, "output", 0, 0)
    return patched


def hidden_state_patches(model: ModelPatcher) -> ModelPatcher:
    patched = model.clone()
    patched.set_model_attn1_patch(lambda q, k, v, options: (q, 0.9 * k, v))
    patched.set_model_attn1_output_patch(lambda n, options: 1.1 * n)
    patched.set_model_attn2_patch(lambda q, k, v, options: (q, k, 0.9 * v))
    patched.set_model_attn2_output_patch(lambda n, options: 1.1 * n)
    patched.set_model_patch(lambda x, options: 1.01 * x, "middle_patch")
    patched.set_model_input_block_patch(lambda h, options: 1.01 * h)
    patched.set_model_output_block_patch(lambda h, hsp, options: (h, 0.99 * hsp))
    return patched


def function_wrapper(model: ModelPatcher) -> ModelPatcher:
    """The one slot of model_function_wrapper."""
    patched = model.clone()
    patched.set_model_unet_function_wrapper(lambda f, args: 0.9 * f(args["input"], args["timestep"], **args["c"]))
    return patched


def patch(module: str, node: str, **inputs: Any) -> Patch:
    return lambda model: use(module, node, model=model, **inputs)


PATCHES: dict[str, Patch] = {
    "FreeU": patch("freelunch", "FreeU", b1=1.1, b2=1.2, s1=0.9, s2=0.2),
    "FreeU V2": patch("freelunch", "FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "PAG": patch("pag", "PerturbedAttentionGuidance", scale=3.0),
    "SAG": patch("sag", "SelfAttentionGuidance", scale=0.5, blur_sigma=2.0),
    "HyperTile": patch("hypertile", "HyperTile", tile_size=32, swap_size=2, max_depth=1, scale_depth=False),
    "token merging": patch("tomesd", "TomePatchModel", ratio=0.5),
    "HyperTile and token merging": lambda m: PATCHES["HyperTile"](PATCHES["token merging"](m)),
    "RescaleCFG": patch("model_advanced", "RescaleCFG", multiplier=0.7),
    "v-prediction, zsnr": patch("model_advanced", "ModelSamplingDiscrete", sampling="v_prediction", zsnr=True),
    "LCM sampling": patch("model_advanced", "ModelSamplingDiscrete", sampling="lcm", zsnr=False),
    "EDM sampling": patch(
        "model_advanced", "ModelSamplingContinuousEDM", sampling="eps", sigma_max=20.0, sigma_min=0.01
    ),
    "deep shrink": patch(
        "model_downscale",
        "PatchModelAddDownscale",
        block_number=1,
        downscale_factor=1.7,
        start_percent=0.0,
        end_percent=0.9,
        downscale_after_skip=True,
        downscale_method="bicubic",
        upscale_method="bicubic",
    ),
    "self-attention multiply": patch("attention_multiply", "UNetSelfAttentionMultiply", q=1.2, k=1.0, v=0.9, out=1.1),
    "temporal attention multiply": patch(
        "attention_multiply", "UNetCrossAttentionMultiply", q=1.2, k=1.0, v=0.9, out=1.1
    ),
    "perp-neg": lambda m: use("perpneg", "PerpNeg", model=m, empty_conditioning=text("sd1", 6), neg_scale=0.7),
    "differential diffusion": patch("differential_diffusion", "DifferentialDiffusion"),
    "CFG-zero*": patch("cfg", "CFGZeroStar"),
    "TCFG": patch("tcfg", "TCFG"),
    "APG": patch("apg", "APG", eta=1.0, norm_threshold=5.0, momentum=0.0),
    "mahiro": patch("mahiro", "Mahiro"),
    "FreSca": patch("fresca", "FreSca", scale_low=1.0, scale_high=1.25, freq_cutoff=2),
    "EasyCache": patch(
        "easycache", "EasyCacheNode", reuse_threshold=5.0, start_percent=0.0, end_percent=1.0, verbose=False
    ),
    "LazyCache": patch(
        "easycache", "LazyCacheNode", reuse_threshold=5.0, start_percent=0.0, end_percent=1.0, verbose=False
    ),
    "LoRA": lambda m: lora(m, 0.8),
    "IPAdapter": ip_adapter,
    "another pack's self-attention": self_attention_of_another_pack,
    "another pack's hidden states": hidden_state_patches,
    "another pack's function wrapper": function_wrapper,
    "all at once": lambda m: ip_adapter(PATCHES["FreeU V2"](PATCHES["PAG"](PATCHES["HyperTile"](lora(m, 0.8))))),
}
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


def area(seed: int, height: int, width: int, top: int, left: int) -> list:
    """ConditioningSetArea, in pixels."""
    sizes = {"height": height, "width": width, "y": top, "x": left}
    return use("nodes", "ConditioningSetArea", conditioning=text("sd1", seed), **sizes, strength=1.0)


def masked(seed: int, bounds: str) -> list:
    mask = hard_mask(96, 64)
    inputs = {"mask": mask, "set_cond_area": bounds, "strength": 0.8}
    return use("nodes", "ConditioningSetMask", conditioning=text("sd1", seed), **inputs)


def timed(seed: int, start: float, end: float) -> list:
    return use("nodes", "ConditioningSetTimestepRange", conditioning=text("sd1", seed), start=start, end=end)


def combined(*conditionings: list) -> list:
    return [one for conditioning in conditionings for one in conditioning]  # ConditioningCombine


def lora_hook(strength: float, seed: int = 0) -> comfy.hooks.HookGroup:
    """Create Hook LoRA (Model Only)."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for block in ("input_blocks_1_1", "output_blocks_1_1"):
        name = f"lora_unet_{block}_transformer_blocks_0_attn1_to_k"
        weights |= {f"{name}.lora_up.weight": torch.randn(32, 2, generator=generator)}
        weights |= {f"{name}.lora_down.weight": torch.randn(2, 32, generator=generator)}
    return comfy.hooks.create_hook_lora(lora=weights, strength_model=strength, strength_clip=0.0)


def keyframed(hooks: comfy.hooks.HookGroup, *strengths: float) -> comfy.hooks.HookGroup:
    frames = comfy.hooks.HookKeyframeGroup()
    for i, strength in enumerate(strengths):
        frames.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=i / len(strengths)))
    return use("hooks", "SetHookKeyframes", hooks=hooks, hook_kf=frames)


def hooked(conditioning: list, hooks: comfy.hooks.HookGroup) -> list:
    return use(
        "hooks", "ConditioningSetProperties", cond_NEW=conditioning, strength=1.0, set_cond_area="default", hooks=hooks
    )


def control_net(strength: float = 0.9, end: float = 1.0, times: int = 1) -> dict[str, list]:
    """Apply ControlNet, of the host, with a tiny ControlNet of seeded random weights."""
    shape = {k: v for k, v in (COMMON | SHAPES["sd1"]).items() if k not in ("out_channels", "transformer_depth_output")}
    network = comfy.cldm.cldm.ControlNet(
        **shape,
        transformer_depth_output=COMMON["transformer_depth_output"],
        hint_channels=3,
        dtype=torch.float32,
        device=CPU,
        operations=comfy.ops.disable_weight_init,
    )
    draw_weights(network, seed=7)
    loaded = comfy.controlnet.ControlNet(network, load_device=CPU)
    hint = torch.rand(1, 96, 64, 3, generator=torch.Generator().manual_seed(8))
    sides = text("sd1", 1), text("sd1", 2)
    inputs = {"control_net": loaded, "image": hint, "strength": strength, "start_percent": 0.0, "end_percent": end}
    for _ in range(times):
        sides = nodes.ControlNetApplyAdvanced().apply_controlnet(*sides, **inputs)
    return {"positive": sides[0], "negative": sides[1]}


def picture(batch: int = 1) -> dict[str, Any]:
    return {"samples": 5.0 * torch.randn(batch, 4, 12, 8, generator=torch.Generator().manual_seed(6))}


def inpainted() -> dict[str, Any]:
    return picture() | {"noise_mask": hard_mask(96, 64)}


GRAPHS: dict[str, Draw] = {
    "ControlNet": lambda m: draw(m, **control_net()),
    "ControlNet, half of the steps": lambda m: draw(m, **control_net(end=0.3)),
    "two ControlNets": lambda m: draw(m, **control_net(times=2)),
    "ControlNet and inpainting": lambda m: draw(m, **control_net(), latent=inpainted()),
    "areas": lambda m: draw(m, positive=combined(area(1, 96, 32, 0, 0), area(3, 96, 32, 0, 32))),
    "areas over a whole": lambda m: draw(m, positive=combined(text("sd1", 1), area(3, 56, 40, 16, 24))),
    "areas on both sides": lambda m: draw(
        m,
        positive=combined(text("sd1", 1), area(3, 48, 64, 0, 0)),
        negative=combined(text("sd1", 2), area(4, 48, 64, 48, 0)),
    ),
    "an area beyond the picture": lambda m: draw(m, positive=combined(text("sd1", 1), area(3, 200, 200, 40, 24))),
    "an area in percent": lambda m: draw(
        m,
        positive=combined(
            text("sd1", 1),
            use(
                "nodes",
                "ConditioningSetAreaPercentage",
                conditioning=text("sd1", 3),
                width=0.6,
                height=0.5,
                x=0.3,
                y=0.2,
                strength=1.0,
            ),
        ),
    ),
    "masks": lambda m: draw(m, positive=combined(text("sd1", 1), masked(3, "default"))),
    "masks in their bounds": lambda m: draw(m, positive=combined(text("sd1", 1), masked(3, "mask bounds"))),
    "texts in turn": lambda m: draw(m, positive=combined(timed(1, 0.0, 0.4), timed(3, 0.4, 1.0))),
    "texts combined": lambda m: draw(m, positive=combined(text("sd1", 1), text("sd1", 3))),
    "texts of other lengths": lambda m: draw(m, positive=text("sd1", 1, tokens=154)),
    "a default text": lambda m: draw(
        m,
        positive=use(
            "hooks", "ConditioningSetDefaultAndCombine", cond=masked(3, "default"), cond_DEFAULT=text("sd1", 1)
        ),
    ),
    "LoRA hook on one side": lambda m: draw(m, positive=hooked(text("sd1", 1), lora_hook(0.8))),
    "LoRA hooks on both sides": lambda m: draw(
        m, positive=hooked(text("sd1", 1), lora_hook(0.8)), negative=hooked(text("sd1", 2), lora_hook(0.5, seed=1))
    ),
    "LoRA hook with keyframes": lambda m: draw(
        m, positive=hooked(text("sd1", 1), keyframed(lora_hook(0.8), 1.0, 0.5, 0.0))
    ),
    "hooks and areas": lambda m: draw(
        m, positive=combined(text("sd1", 1), hooked(area(3, 56, 40, 16, 24), keyframed(lora_hook(0.8), 1.0, 0.2)))
    ),
    "image to image at 0.3": lambda m: draw(m, latent=picture(), denoise=0.3),
    "image to image at 0.6": lambda m: draw(m, latent=picture(), denoise=0.6),
    "a noise mask": lambda m: draw(m, latent=inpainted()),
    "a soft noise mask": lambda m: draw(m, latent=picture() | {"noise_mask": soft_mask(96, 64)}),
    "a noise mask, differential": lambda m: draw(PATCHES["differential diffusion"](m), latent=inpainted()),
    "a batch": lambda m: draw(m, latent=empty_latent(3)),
    "a batch of pictures": lambda m: draw(m, latent=picture(2), denoise=0.6),
    "a batch with ControlNet": lambda m: draw(m, **control_net(), latent=empty_latent(2)),
    "no noise": lambda m: draw(m, latent=picture(), disable_noise=True, start_step=1),
    "cfg 1": lambda m: draw(m, cfg=1.0),
    "cfg 0": lambda m: draw(m, cfg=0.0),
    **{
        f"{height}x{width} latents": lambda m, h=height, w=width: draw(m, latent=empty_latent(1, h, w))
        for height, width in ((8, 8), (6, 15), (13, 9), (7, 11), (3, 5), (1, 8), (31, 2))
    },
}


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


def test_each_lora_under_a_hook_is_another_model() -> None:
    one, positive = subject("sd1", soft_mask()), hooked(text("sd1", 1), lora_hook(0.8))

    def drawn(subject: Any, strength: float) -> Tensor:
        return draw(attend(lora(shared_model("sd1"), strength), subject), positive=positive)

    for strength in (0.5, 0.9, 0.5):
        assert torch.equal(drawn(one, strength), drawn(subject("sd1", soft_mask()), strength))


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


GUIDERS: dict[str, Callable[[ModelPatcher], Any]] = {
    "BasicGuider": lambda m: use("custom_sampler", "BasicGuider", model=m, conditioning=text("sd1", 1)),
    "CFGGuider": lambda m: use(
        "custom_sampler", "CFGGuider", model=m, positive=text("sd1", 1), negative=text("sd1", 2), cfg=5.0
    ),
    **{
        f"DualCFGGuider, {style}": lambda m, style=style: use(
            "custom_sampler", "DualCFGGuider",
            model=m, cond1=text("sd1", 1), cond2=text("sd1", 3), negative=text("sd1", 2),
            cfg_conds=4.0, cfg_cond2_negative=2.0, **({"style": style}),
        )
        for style in ("regular", "nested")
    },
    "PerpNegGuider": lambda m: use(
        "perpneg", "PerpNegGuider",
        model=m, positive=text("sd1", 1), negative=text("sd1", 2), empty_conditioning=text("sd1", 6),
        cfg=5.0, neg_scale=0.7,
    ),
}  # fmt: skip


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
            sigmas=use("custom_sampler", "BasicScheduler", model=model, scheduler="normal", steps=STEPS, denoise=1.0),
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
