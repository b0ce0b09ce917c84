"""The self-attention layers of a U-Net, found by going through its blocks."""

from __future__ import annotations

from typing import NamedTuple

from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialTransformer, SpatialVideoTransformer
from comfy.model_patcher import ModelPatcher


class Layer(NamedTuple):
    """One self-attention layer, as the key of the host's replacement patches."""

    block: str
    number: int
    depth: int


def self_attentions(patcher: ModelPatcher) -> dict[Layer, BasicTransformerBlock]:
    """The self-attention layers of an image U-Net, in the order in which they run.

    Raises ValueError, in one sentence, for a model that is not an SD1.x, SD2.x or SDXL U-Net.
    """
    unet = getattr(patcher.model, "diffusion_model", None)
    blocks = [("input", i, block) for i, block in enumerate(getattr(unet, "input_blocks", ()))]
    blocks += [("middle", 0, getattr(unet, "middle_block", None) or ())]
    blocks += [("output", i, block) for i, block in enumerate(getattr(unet, "output_blocks", ()))]
    transformers = [(name, i, x) for name, i, block in blocks for x in block if isinstance(x, SpatialTransformer)]
    if not transformers or any(isinstance(x, SpatialVideoTransformer) for _, _, x in transformers):
        raise ValueError(
            "expected an image U-Net of the SD1.x, SD2.x or SDXL kind, but this model is a "
            f"{type(patcher.model).__name__}; load a checkpoint of one of those families."
        )
    return {
        Layer(name, i, depth): block
        for name, i, transformer in transformers
        for depth, block in enumerate(transformer.transformer_blocks)
        if isinstance(block, BasicTransformerBlock) and not block.disable_self_attn
    }


def context_size(patcher: ModelPatcher) -> int:
    """Width of the U-Net's text context (768 SD1.5, 1024 SD2, 2048 SDXL)."""
    return next(block.attn2.to_k.weight.shape[1] for block in self_attentions(patcher).values())
