"""A small image tower that can be stored in a subject encoder's own file, for use without a CLIP vision model.

A vision transformer over a convolutional stem (Xiao et al., arXiv 2106.14881: a small tower on few pictures learns
better from one than from plain patches).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class TowerConfig:
    """side: pixels of the square picture. patch: pixels of a token's side, a power of two. heads divide width."""

    side: int = 128
    patch: int = 16
    width: int = 128
    layers: int = 6
    heads: int = 4

    def __post_init__(self) -> None:
        for name, high in (("side", 1024), ("patch", 64), ("width", 4096), ("layers", 64), ("heads", 64)):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= high:
                raise ValueError(f"the tower's {name} must be a whole number of 1..{high}, but is {value!r:.60}.")
        if self.patch < 2 or self.patch & (self.patch - 1):
            raise ValueError(f"the tower's patch must be a power of two of 2..64, but is {self.patch}.")
        if self.side % self.patch or self.width % self.heads:
            raise ValueError(
                f"the tower's side {self.side} must divide by its patch {self.patch}, and its width {self.width} by "
                f"its heads {self.heads}."
            )

    @property
    def tokens(self) -> int:
        return (self.side // self.patch) ** 2


class ImageTower(nn.Module):
    """Images -> hidden states [B, T, W] after any of its layers; T tokens, row by row; W the tower's width."""

    def __init__(self, config: TowerConfig, operations: Any = nn, **kind: Any) -> None:
        """operations: a module with Linear, Conv2d and LayerNorm (torch.nn, or the host's). kind: dtype and device."""
        super().__init__()
        self.config = config
        halvings = int(math.log2(config.patch))
        widths = [3, *(max(8, config.width >> (halvings - i)) for i in range(1, halvings + 1))]
        self.stem = nn.ModuleList(
            operations.Conv2d(n_in, n_out, 3, stride=2, padding=1, **kind) for n_in, n_out in pairwise(widths)
        )
        self.project = operations.Linear(widths[-1], config.width, **kind)
        self.position = operations.Embedding(config.tokens, config.width, **kind)
        self.layers = nn.ModuleList(
            TowerLayer(config.width, config.heads, operations, **kind) for _ in range(config.layers)
        )
        self.norm = operations.LayerNorm(config.width, **kind)

    def hidden_states(self, pictures: Tensor, layers: Sequence[int]) -> Tensor:
        """Images [B, 3, side, side] in 0..1 -> [B, L, T, W]: the output of each of these layers; 0 is the embedding."""
        h, found = self.embed(pictures), {}
        if 0 in layers:
            found[0] = h
        for i, layer in enumerate(self.layers, start=1):
            if i > max(layers):
                break
            h = layer(h)
            if i in layers:
                found[i] = h
        return torch.stack([found[i] for i in layers], dim=1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Images [B, 3, side, side] in 0..1 -> one embedding each, [B, W], for training the tower itself."""
        h = self.embed(pictures)
        for layer in self.layers:
            h = layer(h)
        return self.norm(h).mean(dim=1)

    def embed(self, pictures: Tensor) -> Tensor:
        """[B, 3, side, side] in 0..1 -> [B, T, W]."""
        h = 2 * pictures - 1
        for convolution in self.stem:
            h = F.gelu(convolution(h))  # [B, w, side / 2^i, side / 2^i]
        h = self.project(rearrange(h, "b w rows columns -> b (rows columns) w"))  # [B, T, W]
        return h + self.position.weight.to(h)


class TowerLayer(nn.Module):
    """A pre-norm transformer layer, [B, T, W] -> [B, T, W]."""

    def __init__(self, width: int, heads: int, operations: Any = nn, **kind: Any) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = operations.LayerNorm(width, **kind)
        self.to_qkv = operations.Linear(width, 3 * width, **kind)
        self.to_out = operations.Linear(width, width, **kind)
        self.norm2 = operations.LayerNorm(width, **kind)
        self.fc1 = operations.Linear(width, 4 * width, **kind)
        self.fc2 = operations.Linear(4 * width, width, **kind)

    def forward(self, h: Tensor) -> Tensor:
        """[B, T, W] -> [B, T, W]."""
        q, k, v = rearrange(self.to_qkv(self.norm1(h)), "b t (qkv heads d) -> qkv b heads t d", qkv=3, heads=self.heads)
        h = h + self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads t d -> b t (heads d)"))
        return h + self.fc2(F.gelu(self.fc1(self.norm2(h))))
