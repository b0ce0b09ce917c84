"""Which attention kernel computes what."""

from __future__ import annotations

import inspect

import comfy.ldm.modules.attention as host
from torch import Tensor

from ..attention import Attention
from .options import HEADS, Options, precision

DIFFERENTIABLE = {f"attention_{kind}" for kind in ("pytorch", "basic", "sub_quad", "split", "xformers")}
EXACT = DIFFERENTIABLE | {"attention_flash"}  # others quantise the keys and would round away the channels of log m


def plain_attention(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    """Exactly what the host computes where nothing is replaced, another pack's choice of kernel included."""
    takes_options = "kwargs" in inspect.signature(host.optimized_attention).parameters  # from 0.3.53 on
    more = {"transformer_options": options} if takes_options else {}
    return host.optimized_attention(q, k, v, options[HEADS], attn_precision=precision(options), **more)


def exact_attention(options: Options) -> Attention:
    """The host's kernel, or torch's where the host's is not known to carry the weight exactly."""
    known = host.optimized_attention.__name__ in EXACT
    kernel = host.optimized_attention if known else host.attention_pytorch
    return lambda q, k, v, heads: kernel(q, k, v, heads, attn_precision=precision(options))
