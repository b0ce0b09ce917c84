"""The transformer blocks of a U-Net in the original layout: their names and the shapes of their cross-attentions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LAYER_NAME = re.compile(r"(input|middle|output)_\d{1,3}_\d{1,3}")


@dataclass(frozen=True)
class AttentionShape:
    """One transformer block: the width of its hidden states, and its cross-attention's heads and their size."""

    width: int
    heads: int
    head_size: int

    @property
    def inner(self) -> int:
        """Width of q, k and v."""
        return self.heads * self.head_size


def transformer_blocks(unet: Any) -> dict[str, Any]:
    """The transformer blocks of a U-Net in the original layout, in the order in which they run, by name.

    It has input_blocks, middle_block and output_blocks, and each of its spatial transformers `transformer_blocks`:
    the host's U-Nets and the lab's mini base.
    """
    parts = [("input", i, block) for i, block in enumerate(unet.input_blocks)]
    parts += [("middle", 0, unet.middle_block)]
    parts += [("output", i, block) for i, block in enumerate(unet.output_blocks)]
    return {
        layer_name(part, number, depth): block
        for part, number, modules in parts
        for module in modules
        for depth, block in enumerate(getattr(module, "transformer_blocks", ()))
    }


def layer_name(part: str, number: int, depth: int) -> str:
    """The name of block `depth` of the transformer in a part's (input, middle, output) block `number`."""
    return f"{part}_{number}_{depth}"


def attention_shapes(blocks: Mapping[str, Any]) -> dict[str, AttentionShape]:
    """The settings of each block's cross-attention `attn2`, which its S-E-A shares."""
    shapes = {}
    for name, block in blocks.items():
        inner, width = block.attn2.to_q.weight.shape
        shapes[name] = AttentionShape(width, block.attn2.heads, inner // block.attn2.heads)
    return shapes


def context_width(blocks: Mapping[str, Any]) -> int:
    """Width of the text that the blocks' cross-attentions read."""
    return next(iter(blocks.values())).attn2.to_k.weight.shape[1]
