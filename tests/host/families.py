"""Tiny U-Nets with seeded random weights, one of each family's layout, as the host itself builds them."""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import torch

POOLED = 32  # width of the tiny SDXL's pooled text

COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "use_spatial_transformer": True,
    "legacy": False,
}
SHAPES = {
    "sd1": {"context_dim": 48, "num_heads": 4, "num_head_channels": -1, "use_linear_in_transformer": False},
    "sd2": {"context_dim": 64, "num_heads": -1, "num_head_channels": 16, "use_linear_in_transformer": True},
    "sdxl": {
        "context_dim": 80,
        "num_heads": -1,
        "num_head_channels": 16,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": POOLED + 6 * 256,
        "transformer_depth": [0, 2],
        "transformer_depth_middle": 2,
        "transformer_depth_output": [0, 0, 2, 2],
    },
}
HOST_FAMILY = {
    "sd1": comfy.supported_models.SD15,
    "sd2": comfy.supported_models.SD20,
    "sdxl": comfy.supported_models.SDXL,
}


def tiny_model(
    family: str,
    dtype: torch.dtype = torch.float32,
    v_prediction: bool = False,
    in_channels: int = 4,
    seed: int = 0,
    computed_in: torch.dtype | None = None,
) -> comfy.model_patcher.ModelPatcher:
    """A MODEL of that family (sd1, sd2, sdxl) with every weight drawn from the seed, the zero-initialised too.

    computed_in: another type than that of the weights (the host's manual cast).
    """
    unet_config = {**COMMON, **SHAPES[family], "in_channels": in_channels, "dtype": dtype}
    config = HOST_FAMILY[family](unet_config)
    config.unet_config = unet_config
    if computed_in is not None:
        config.manual_cast_dtype, config.custom_operations = computed_in, comfy.ops.manual_cast
    elif dtype != torch.float32:
        config.custom_operations = comfy.ops.disable_weight_init
    kind = comfy.model_base.ModelType.V_PREDICTION if v_prediction else comfy.model_base.ModelType.EPS
    base = comfy.model_base.SDXL if family == "sdxl" else comfy.model_base.BaseModel
    if in_channels == 8:
        base = comfy.model_base.SD15_instructpix2pix
    model = base(config, model_type=kind, device="cpu")
    if in_channels == 9:
        model.set_inpaint()
    draw_weights(model.diffusion_model, seed)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def draw_weights(network: torch.nn.Module, seed: int) -> None:
    """Every weight from the seed, in float32 and then in its own type."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(network.named_parameters()):
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            values = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
        else:
            values = torch.full(parameter.shape, 1.0 if name.endswith("weight") else 0.0)
            values += 0.1 * torch.randn(parameter.shape, generator=generator)
        parameter.data = values.to(parameter.dtype)
        parameter.requires_grad = False


def text(family: str, seed: int, tokens: int = 77) -> list:
    """A CONDITIONING of that family's width, seeded."""
    generator = torch.Generator().manual_seed(seed)
    more = {"pooled_output": torch.randn(1, POOLED, generator=generator)} if family == "sdxl" else {}
    return [[torch.randn(1, tokens, SHAPES[family]["context_dim"], generator=generator), more]]
