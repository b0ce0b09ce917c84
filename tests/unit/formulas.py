"""Plain writings that several unit tests check against, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def randn(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_norm(x: Tensor, weight: Tensor | float = 1.0, bias: Tensor | float = 0.0) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def plain_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    size = q.shape[-1] // heads
    parts = [slice(i * size, (i + 1) * size) for i in range(heads)]
    return torch.cat(
        [(q[..., p] @ k[..., p].transpose(1, 2) / size**0.5).softmax(-1) @ v[..., p] for p in parts], dim=-1
    )


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Of a seeded sum of the output."""
    return list(torch.autograd.grad((output * randn(*output.shape, seed=77)).sum(), inputs))
