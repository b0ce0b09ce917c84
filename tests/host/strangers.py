"""Models of other kinds than the pack's, as the host builds them."""

from __future__ import annotations

import comfy.ops
import torch
from comfy.ldm.cascade.stage_c import StageC
from comfy.ldm.flux.model import Flux, FluxParams
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from families import COMMON, SHAPES

CPU = torch.device("cpu")


def stranger(name: str, network: torch.nn.Module) -> ModelPatcher:
    """A MODEL of another kind."""
    model = type(name, (torch.nn.Module,), {})()
    model.diffusion_model = network
    return ModelPatcher(model, load_device=CPU, offload_device=CPU)


def flux() -> ModelPatcher:
    sizes = {"in_channels": 4, "out_channels": 4, "vec_in_dim": 8, "context_in_dim": 8, "hidden_size": 24}
    depth = {"mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 4, 4]}
    newer = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__annotations__ else {}
    rest = newer | {"theta": 10, "patch_size": 2, "qkv_bias": True, "guidance_embed": False, "dtype": torch.float32}
    return stranger("Flux", Flux(**sizes, **depth, **rest, device=CPU, operations=comfy.ops.disable_weight_init))


def cascade() -> ModelPatcher:
    sizes = {
        "c_in": 4,
        "c_out": 4,
        "c_r": 8,
        "c_cond": 16,
        "c_hidden": [16, 16],
        "nhead": [2, 2],
        "blocks": [[1, 1]] * 2,
    }
    rest = {"block_repeat": [[1, 1]] * 2, "level_config": ["CTA"] * 2, "c_clip_text": 8, "c_clip_text_pooled": 8}
    rest |= {"c_clip_img": 8, "c_clip_seq": 1, "kernel_size": 3, "dropout": [0.0, 0.0], "device": CPU}
    return stranger("StableCascade_C", StageC(**sizes, **rest, operations=comfy.ops.disable_weight_init))


def video() -> ModelPatcher:
    """Stable Video Diffusion: a U-Net, but of frames."""
    temporal = {"use_temporal_attention": True, "use_temporal_resblock": True, "video_kernel_size": [3, 1, 1]}
    shape = COMMON | SHAPES["sd2"] | temporal | {"extra_ff_mix_layer": True, "merge_strategy": "learned_with_images"}
    return stranger("SVD_img2vid", UNetModel(**shape, dtype=torch.float32, operations=comfy.ops.disable_weight_init))
