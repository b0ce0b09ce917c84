"""The choice of attention kernels, and of the way to compute Eq. 3 with them; for the reasons see docs/cost.md."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import comfy.ldm.modules.attention as host
from comfy.cli_args import args
from torch import Tensor

from ..attention import (
    ReferenceTokens,
    attention_with_bias,
    log_weight_bias,
    log_weight_channels,
    self_subject_attention,
)
from .options import HEADS, OVERRIDE, Options, precision

DIFFERENTIABLE = {f"attention_{kind}" for kind in ("pytorch", "basic", "sub_quad", "split", "xformers")}
EXACT = DIFFERENTIABLE | {"attention_flash"}  # others quantise the keys and would round away the channels of log m


class Way(NamedTuple):
    """One exact way to compute Eq. 3.

    log_m: (q, own keys, references, heads) -> log m in this way's form, the same at every layer and step of that shape.
    attend: (q, k, v, references, heads, own, log_m) -> [B, N, C]; own: the output of another pack's patch, or None.
    """

    log_m: Callable[[Tensor, int, Sequence[ReferenceTokens], int], Any]
    attend: Callable[[Tensor, Tensor, Tensor, Sequence[ReferenceTokens], int, Tensor | None, Any], Tensor]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    """The host's own attention, without a replacement, but with another pack's choice of kernel: [B, N, C]."""
    more = {"transformer_options": options} if _takes_options(host.optimized_attention) else {}
    return host.optimized_attention(q, k, v, options[HEADS], attn_precision=precision(options), **more)


@lru_cache(maxsize=8)
def _takes_options(kernel: Callable[..., Tensor]) -> bool:
    return "kwargs" in inspect.signature(kernel).parameters  # from 0.3.53 on


BY_BIAS = Way(
    lambda q, own_keys, references, heads: log_weight_bias(q, own_keys, references),
    lambda q, k, v, references, heads, own, bias: attention_with_bias(q, k, v, references, heads, bias),
)


def reference_attention(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    """The reference's own self-attention [B, N, C], without other packs' patches, by the faster kernel."""
    if _torch_is_quicker(q, options):
        return host.attention_pytorch(q, k, v, options[HEADS])
    return plain_attention(q, k, v, options)


def way_of_eq3(q: Tensor, references: Sequence[ReferenceTokens], own: Tensor | None, options: Options) -> Way:
    """The fastest exact way.

    A bias by key needs no wider heads, but flash kernels on a GPU cannot use it, and it gives neither regions nor the
    share of the softmax: for these, the channels.
    """
    quicker = _torch_is_quicker(q, options)
    if quicker and own is None and all(r.region is None for r in references):
        return BY_BIAS
    exact = host.optimized_attention.__name__ in EXACT and not quicker
    kernel = host.optimized_attention if exact else host.attention_pytorch

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return kernel(q, k, v, heads, attn_precision=precision(options))

    def attend(q: Tensor, k: Tensor, v: Tensor, found: Any, heads: int, own: Tensor | None, log_m: Any) -> Tensor:
        return self_subject_attention(q, k, v, found, heads, attention, own, log_m)

    return Way(log_weight_channels, attend)


def _torch_is_quicker(q: Tensor, options: Options) -> bool:
    """Whether the host uses its sub-quadratic attention only by default: on a CPU, torch's is three times faster."""
    chosen = args.use_quad_cross_attention or OVERRIDE in options
    return q.device.type == "cpu" and host.optimized_attention is host.attention_sub_quad and not chosen
