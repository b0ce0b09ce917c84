"""The U-Nets that the bench samples: the real shapes, random weights, the host's own classes."""

from __future__ import annotations

from typing import Any

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
}
MODELS = {"sd15": SD15, "sdxl": SDXL, "tiny": TINY}  # tiny is for the bench's own test
POOLED = 1280  # width of SDXL's pooled text
TEXT_TOKENS = 77


def random_unet(name: str) -> Any:
    """A MODEL with seeded random weights, of the type that the host chooses on this device."""
    import comfy.ops
    import comfy.supported_models
    import torch
    from comfy import model_management
    from comfy.model_patcher import ModelPatcher

    family = comfy.supported_models.SDXL if name == "sdxl" else comfy.supported_models.SD15
    config = family(MODELS[name])
    device, types = model_management.get_torch_device(), config.supported_inference_dtypes
    dtype = model_management.unet_dtype(device=device, model_params=10**9, supported_dtypes=types)
    config.set_inference_dtype(dtype, model_management.unet_manual_cast(dtype, device, types))
    config.custom_operations = comfy.ops.manual_cast if config.manual_cast_dtype else comfy.ops.disable_weight_init
    model = config.get_model({}, "", device=device)
    torch.manual_seed(0)
    for part, parameter in model.diffusion_model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(1.0 if part.endswith("weight") else 0.0)
        parameter.requires_grad = False
    return ModelPatcher(model, load_device=device, offload_device=model_management.unet_offload_device())


def random_text(name: str, seed: int) -> list[Any]:
    """A CONDITIONING of that model's width."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    more = {"pooled_output": torch.randn(1, POOLED, generator=generator)} if MODELS[name]["adm_in_channels"] else {}
    return [[torch.randn(1, TEXT_TOKENS, MODELS[name]["context_dim"], generator=generator), more]]
