"""The names of weights in a LoRA file, as other tools write them."""

from __future__ import annotations

import comfy.ldm.modules.attention as host
import comfy.lora
import comfy.model_base
import torch
import torch.utils.checkpoint
from torch import nn


def transformer_weights(model: comfy.model_base.BaseModel) -> list[str]:
    """Keys of the projections in the U-Net's transformers, which LoRA trainers usually train."""
    return [
        f"diffusion_model.{block}.{name}.weight"
        for block, transformer in model.diffusion_model.named_modules()
        if isinstance(transformer, host.SpatialTransformer)
        for name, module in transformer.named_modules()
        if hasattr(module, "weight_function") and getattr(module, "weight", torch.empty(0)).ndim >= 2
    ]


def unet_file_keys(model: comfy.model_base.BaseModel) -> dict[str, str]:
    """Each weight's name in a LoRA file, as other tools write it: diffusers' names for SD1.x and SD2.x, the
    checkpoint's for SDXL. The host reads both."""
    own = isinstance(model, comfy.model_base.SDXL)
    names: dict[str, str] = {}
    for name, key in comfy.lora.model_lora_keys_unet(model, {}).items():
        if name.startswith("lora_unet_") and (key not in names or not own):
            names[key] = name  # the host lists the checkpoint's own names first
    return names


def text_file_keys(network: nn.Module) -> dict[str, str]:
    """Each text encoder projection's name in a LoRA file: lora_te_ for one encoder, lora_te1_ and lora_te2_ for two."""
    names: dict[str, str] = {}
    for name, key in comfy.lora.model_lora_keys_clip(network, {}).items():
        if name.startswith("lora_te") and ".encoder.layers." in key:
            names.setdefault(key, name)
            if hasattr(network, "clip_l") and hasattr(network, "clip_g") and not name.startswith("lora_te_"):
                names[key] = name
    return names
