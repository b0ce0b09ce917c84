"""Self-subject attention (section 3.2, Eq. 3).

    S-S-A(z, z_r) = softmax( q [k, k_r]^T / sqrt(d) + log m ) [v, v_r],    m = [J, w_ref m_r]

How it is computed without a mask of N x 2N entries:
- a token whose weight is zero is left out, which is what log 0 means;
- log m depends on the key alone, or, for a region, on query plus key: a product of few channels. These ride in extra
  channels of q and k, so any exact attention kernel (flash, xformers, split, ...) computes Eq. 3 in one plain call;
- where log m depends on the key alone, torch's own kernel adds it as a bias that is stored once for all heads and
  queries: no wider heads, and one copy less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(q [B, N, C], k [B, M, C], v [B, M, C], heads) -> [B, N, C]; scaled by 1 / sqrt(C / heads), no mask."""

LOG_ZERO = -1000.0  # a region's zero: its exponential underflows to 0 in every type, and fp16 can still hold it
ALIGNMENT = 8  # kernels want the head size in multiples of this


@dataclass(frozen=True)
class ReferenceTokens:
    """The tokens of one subject for one self-attention layer.

    k, v: [1, M, C], the layer's projections of the reference's foreground tokens.
    weight: [M] or [B, M], w_ref * m_r of each token, all above zero.
    region: None, or [N] or [B, N] in 0..1: how much each token of the picture being made may see this subject.
    """

    k: Tensor
    v: Tensor
    weight: Tensor
    region: Tensor | None = None


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Plain multi-head attention by torch's own kernels, the default `Attention`.

    q: [B, N, C]; k, v: [B, M, C]; result [B, N, C].
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def self_subject_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    references: Sequence[ReferenceTokens],
    heads: int,
    attention: Attention = softmax_attention,
    own: Tensor | None = None,
    channels: LogWeightChannels | None = None,
) -> Tensor:
    """Eq. 3 for one layer, any number of subjects in one softmax.

    q: [B, N, C]; k, v: [B, K, C] of the picture being made; result [B, N, C].
    own: [B, N, C] or None: the output of another attention patch for q, k and v. It replaces the picture's own part of
        Eq. 3, and the reference is added with its share of the softmax. Exact if that patch computes attention in
        another way; a reasonable result if it does something else.
    channels: the result of `log_weight_channels` for these references, to compute it once for all layers and steps;
        None computes it here.
    """
    if not references:
        return attention(q, k, v, heads) if own is None else own

    own_keys, head_size = k.shape[1], q.shape[-1] // heads
    query_side, key_side, value_side = channels or log_weight_channels(q, own_keys, references, heads)
    wide = head_size + query_side.shape[-1]
    own_values = v if own is None else torch.zeros_like(v)
    out = attention(
        _widened([q * math.sqrt(wide / head_size)], query_side, heads),
        _widened([k, *(r.k for r in references)], key_side, heads),  # [B, K + M, heads * wide]
        _widened([own_values, *(r.v for r in references)], value_side, heads),
        heads,
    ).unflatten(-1, (heads, wide))
    result = out[..., :head_size]
    if own is not None:
        result = result + own.unflatten(-1, (heads, head_size)) * (1 - out[..., head_size : head_size + 1])
    return result.flatten(2)


def attention_with_bias(
    q: Tensor, k: Tensor, v: Tensor, references: Sequence[ReferenceTokens], heads: int, bias: Tensor
) -> Tensor:
    """Eq. 3 for one layer by torch's own kernel, without regions: [B, N, C].

    q: [B, N, C]; k, v: [B, K, C]. bias: the result of `log_weight_bias` for these references.
    """
    rows = q.shape[0]
    k = torch.cat([k, *(r.k.expand(rows, -1, -1) for r in references)], dim=1)  # [B, K + M, C]
    v = torch.cat([v, *(r.v.expand(rows, -1, -1) for r in references)], dim=1)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # [B, heads, T, d]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


def log_weight_bias(like: Tensor, own_keys: int, references: Sequence[ReferenceTokens]) -> Tensor:
    """log m of Eq. 3 by key, without regions: [B or 1, 1, 1, K + M], the same for all heads and queries.

    In float32 if `like` has half precision, so that the weight is not rounded: torch's kernel accepts that.
    """
    precise = torch.promote_types(like.dtype, torch.float32)
    return F.pad(_weights(references, precise).log(), (own_keys, 0))[:, None, None]


class LogWeightChannels(NamedTuple):
    """Channels to append to every head of q [B or 1, N, E], of k [B or 1, K + M, E] and of v [1, K + M, E].

    The product of those of q and k is log m. In v the first one is 1 for a reference's token, so its output is the
    references' share of the softmax. The rest are zeros, up to a head size that suits the kernels.
    """

    query_side: Tensor
    key_side: Tensor
    value_side: Tensor


def log_weight_channels(
    q: Tensor, own_keys: int, references: Sequence[ReferenceTokens], heads: int
) -> LogWeightChannels:
    """log m of Eq. 3 for q [B, N, C] over K own keys and the references' M.

    A logarithm takes two channels (its rounded value, and the rest), so that a half precision type does not round the
    weight; the channel that it is multiplied with is a power of two, which is exact.
    """
    head_size = q.shape[-1] // heads
    used = 1 + 2 + sum(2 for r in references if r.region is not None)
    extra = used + -(head_size + used) % ALIGNMENT
    precise = torch.promote_types(q.dtype, torch.float32)
    root = math.sqrt(head_size + extra)  # the kernel divides products by this
    unit = 2.0 ** round(math.log2(root))

    def logarithm(x: Tensor) -> Tensor:
        exact = x.to(precise).log().clamp(min=LOG_ZERO) * (root / unit)
        rounded = exact.to(q.dtype)
        return torch.stack([rounded, (exact - rounded.to(precise)).to(q.dtype)], dim=-1)

    weight = F.pad(_weights(references, precise), (own_keys, 0), value=1.0)  # [B or 1, K + M]
    tokens = weight.shape[1]
    is_reference = (torch.arange(tokens, device=q.device) >= own_keys).to(q.dtype)
    query_side = [q.new_zeros(1, q.shape[1], 1), q.new_full((1, q.shape[1], 2), unit)]
    key_side = [q.new_zeros(len(weight), tokens, 1), logarithm(weight)]
    start = own_keys
    for r in references:
        stop = start + r.k.shape[1]
        if r.region is not None:
            subject = q.new_zeros(len(weight), tokens, 2)
            subject[:, start:stop] = unit
            query_side.append(logarithm(r.region.reshape(-1, q.shape[1])))
            key_side.append(subject)
        start = stop
    rows = max(x.shape[0] for x in query_side)
    return LogWeightChannels(
        F.pad(torch.cat([x.expand(rows, -1, -1) for x in query_side], dim=-1), (0, extra - used)),
        F.pad(torch.cat(key_side, dim=-1), (0, extra - used)),
        F.pad(is_reference[None, :, None], (0, extra - 1)),
    )


def _weights(references: Sequence[ReferenceTokens], dtype: torch.dtype) -> Tensor:
    """The weights of all references' tokens, [B or 1, M]."""
    weights = [torch.atleast_2d(r.weight.to(dtype)) for r in references]
    rows = max(map(len, weights))
    return torch.cat([weight.expand(rows, -1) for weight in weights], dim=1)


def _widened(parts: Sequence[Tensor], channels: Tensor, heads: int) -> Tensor:
    """Join the parts [B or 1, T, heads * d], and append to each head its channels [B or 1, sum of T, E].

    Returns [B, sum of T, heads * (d + E)], with the first part's B. Filled in place: one copy instead of two.
    """
    head_size = parts[0].shape[-1] // heads
    shape = (parts[0].shape[0], sum(x.shape[1] for x in parts), heads, head_size + channels.shape[-1])
    wide, start = parts[0].new_empty(shape), 0
    for x in parts:
        stop = start + x.shape[1]
        wide[:, start:stop, :, :head_size] = x.unflatten(-1, (heads, head_size))
        start = stop
    wide[..., head_size:] = channels[:, :, None]
    return wide.flatten(2)
