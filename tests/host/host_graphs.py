"""What the host can put on a graph beside patches: areas, masks, hooks, ControlNet, latents, guiders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from families import COMMON, SHAPES, draw_weights, text
from graph import draw, empty_latent, hard_mask, soft_mask
from host_patches import PATCHES, Draw, use

import nodes


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
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    draw_weights(network, seed=7)
    loaded = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
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
