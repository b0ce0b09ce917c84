"""The U-Nets that the bench samples: the real shapes, random weights, the host's own classes."""

from __future__ import annotations

import importlib
from typing import Any

from lab.inside import PACK

SD15: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "context_dim": 768,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "adm_in_channels": None,
    "legacy": False,
}
SDXL: dict[str, Any] = {
    **SD15,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "context_dim": 2048,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
TINY: dict[str, Any] = {
    **SD15,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": 32,
}
TINY_XL: dict[str, Any] = {
    **SDXL,
    "model_channels": 64,
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [0, 1, 2],
    "transformer_depth_middle": 2,
    "transformer_depth_output": [0, 0, 1, 1, 2, 2],
    "context_dim": 64,
    "adm_in_channels": 32 + 6 * 256,
}
TINY_MODELS = {"tiny": TINY, "tinyxl": TINY_XL}  # for the bench's own test
MODELS = {"sd15": SD15, "sdxl": SDXL, **TINY_MODELS}
TIMES = 6 * 256  # of SDXL's y: six sizes, embedded
POOLED = SDXL["adm_in_channels"] - TIMES  # the rest of y: the pooled text
TEXT_TOKENS = 77


def random_unet(name: str) -> Any:
    """A MODEL with seeded random weights, of the type that the host chooses on this device."""
    import comfy.ops
    import comfy.supported_models
    import torch
    from comfy import model_management
    from comfy.model_patcher import ModelPatcher

    family = comfy.supported_models.SDXL if is_xl(name) else comfy.supported_models.SD15
    config = family(MODELS[name])
    device, types = model_management.get_torch_device(), config.supported_inference_dtypes
    dtype = model_management.unet_dtype(device=device, model_params=10**9, supported_dtypes=types)
    config.set_inference_dtype(dtype, model_management.unet_manual_cast(dtype, device, types))
    config.custom_operations = comfy.ops.manual_cast if config.manual_cast_dtype else comfy.ops.disable_weight_init
    model = config.get_model({}, "", device=device)
    torch.manual_seed(0)
    draw_weights(model.diffusion_model)
    return ModelPatcher(model, load_device=device, offload_device=model_management.unet_offload_device())


def draw_weights(network: Any) -> None:
    """Draw weights that keep the size of the activations; biases are zero."""
    for part, parameter in network.named_parameters():
        parameter.requires_grad = False
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(1.0 if part.endswith("weight") else 0.0)


def is_xl(name: str) -> bool:
    return MODELS[name]["adm_in_channels"] is not None


def pack(module: str) -> Any:
    """A module of the method, from the one loaded copy of the pack."""
    return importlib.import_module(f"{PACK}.dreamtuner_core.{module}")


def random_text(name: str, seed: int) -> list[Any]:
    """A CONDITIONING of that model's width."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    shape, more = MODELS[name], {}
    if is_xl(name):
        more["pooled_output"] = torch.randn(1, shape["adm_in_channels"] - TIMES, generator=generator)
    return [[torch.randn(1, TEXT_TOKENS, shape["context_dim"], generator=generator), more]]
