"""The host's own patches of a model, other packs' ones in a few lines, and what holds beside each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from families import text
from graph import lora, shared_model
from torch import Tensor

CPU = torch.device("cpu")


Patch = Callable[[ModelPatcher], ModelPatcher]


Draw = Callable[[ModelPatcher], Tensor]


def use(module: str, node: str, **inputs: Any) -> Any:
    """Run one of the host's own nodes, of its old or its new schema; its first output."""
    kind = getattr(importlib.import_module(module if module == "nodes" else f"comfy_extras.nodes_{module}"), node)
    new = issubclass(kind, io.ComfyNode)
    out = kind.execute(**inputs) if new else getattr(kind(), kind.FUNCTION)(**inputs)
    return (out.args if isinstance(out, io.NodeOutput) else out)[0]


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
