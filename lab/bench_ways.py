"""Choices that only a measurement on the device can decide: how Eq. 3 is computed, and the reference pass's rows.

Each way to compute a layer of Eq. 3 is exact; which one is fastest depends on the kernel. The pack uses one of them
(`dreamtuner_core.host.kernels`); the others are here, to be measured beside it.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lab.bench_rounds import measured
from lab.bench_run import PART, WEIGHT, Bench
from lab.bench_unet import pack

ROWS = 2  # CFG at batch 1
LEVELS = (1, 2, 4)
TIMES = 7


def way_rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """Milliseconds and largest error of each way, for each shape of layer of that U-Net."""
    model, heads_of = bench.patcher.model, _heads(bench)
    for tokens, channels in dict.fromkeys(bench.costs["layers"]):
        for part in (PART, 1.0):
            like = {"device": bench.device, "dtype": model.get_dtype()}
            q, k, v = (torch.randn(ROWS, tokens, channels, **like) for _ in range(3))
            k_r, v_r = (torch.randn(1, max(1, int(part * tokens)), channels, **like) for _ in range(2))
            heads = heads_of[channels]
            exact = _dense(q.double(), k.double(), v.double(), k_r.double(), v_r.double(), heads)
            for name, way in {"plain": _plain, **WAYS}.items():
                run = way(q, k, v, k_r, v_r, heads)
                error = None if name == "plain" else float((run().double() - exact).abs().max())
                times = [measured(run, bench.device) for _ in range(TIMES)]
                yield {
                    "model": bench.plan.model,
                    "tokens": tokens,
                    "channels": channels,
                    "heads": heads,
                    "foreground": part,
                    "way": name,
                    "milliseconds": 1e3 * statistics.median(m.seconds for m in times),
                    "cpu_milliseconds": 1e3 * statistics.median(m.cpu_seconds for m in times),
                    "error": error,
                }


def level_rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """The reference pass for several noise levels at once: seconds a level, and whether the features stay the same."""
    patcher, subject = bench.patcher, bench.subject(1.0)
    model, layers = patcher.model, list(pack("host.unet").self_attentions(patcher))
    reference = pack("host.sampling.reference")
    conditions = reference.text_conditions(patcher, subject, bench.device)
    alone: dict[Any, Tensor] = {}
    for rows in LEVELS:
        run = _pass(model, layers, conditions, subject, rows, bench.device)
        found = run()
        alone = alone or found
        times = [measured(run, bench.device) for _ in range(min(TIMES, bench.plan.limits.fewest))]
        yield {
            "model": bench.plan.model,
            "latent": bench.plan.latent,
            "levels": rows,
            "seconds_a_level": statistics.median(m.seconds for m in times) / rows,
            "cpu_seconds_a_level": statistics.median(m.cpu_seconds for m in times) / rows,
            "same": all(torch.equal(found[layer][:1], alone[layer]) for layer in alone),
        }


class _Enough(Exception):
    """The last layer that is read has been reached."""


def _pass(
    model: Any, layers: list[Any], conditions: dict[str, Tensor], subject: Any, rows: int, device: Any
) -> Callable[[], dict[Any, Tensor]]:
    levels = torch.linspace(1.0, 8.0, max(LEVELS), device=device)[:rows]
    latent = model.process_latent_in(subject.latent.to(device))
    noisy = latent + levels[:, None, None, None] * subject.noise().to(device)
    conds = {name: x.expand(rows, *x.shape[1:]) for name, x in conditions.items()}
    plain = pack("host.kernels").plain_attention

    def run() -> dict[Any, Tensor]:
        keys: dict[Any, Tensor] = {}

        def keep(layer: Any) -> Callable[..., Tensor]:
            def attend(q: Tensor, k: Tensor, v: Tensor, options: Any) -> Tensor:
                keys[layer] = k
                if layer == layers[-1]:
                    raise _Enough
                return plain(q, k, v, options)

            return attend

        options = {"sigmas": levels, "patches_replace": {"attn1": {layer: keep(layer) for layer in layers}}}
        with contextlib.suppress(_Enough):
            model.apply_model(noisy, levels, **conds, transformer_options=options)
        return keys

    return run


def _heads(bench: Bench) -> dict[int, int]:
    """Heads by the number of channels."""
    blocks = pack("host.unet").self_attentions(bench.patcher).values()
    return {block.attn1.to_q.weight.shape[0]: block.attn1.heads for block in blocks}


# --- the ways: (q [B, N, C], k, v, k_r [1, M, C], v_r, heads) -> a function without arguments that returns [B, N, C] --

Way = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Callable[[], Tensor]]


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _plain(q: Tensor, k: Tensor, v: Tensor, k_r: Tensor, v_r: Tensor, heads: int) -> Callable[[], Tensor]:
    """No reference, the host's kernel: for comparison with the others."""
    import comfy.ldm.modules.attention as host

    return lambda: host.optimized_attention(q, k, v, heads)


def _dense(q: Tensor, k: Tensor, v: Tensor, k_r: Tensor, v_r: Tensor, heads: int) -> Tensor:
    """Eq. 3 as it is written."""
    k, v = (torch.cat([x, r.expand(len(q), -1, -1)], dim=1) for x, r in ((k, k_r), (v, v_r)))
    q, k, v = (_split(x, heads) for x in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    scores[..., -k_r.shape[1] :] += math.log(WEIGHT)
    return _joined(scores.softmax(-1) @ v)


def _bias(q: Tensor, k_r: Tensor, keys: int) -> Tensor:
    """log m of each key, [1, 1, 1, K + M]: the same for all heads and queries, without a copy for each."""
    return F.pad(q.new_full((1, 1, 1, k_r.shape[1]), math.log(WEIGHT)), (keys, 0))


def _torch(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: int) -> Tensor:
    return _joined(F.scaled_dot_product_attention(_split(q, heads), _split(k, heads), _split(v, heads), bias))


def _of_the_pack(kernel: str) -> Way:
    """The pack's own way, with the host's kernel of that name."""

    def way(q: Tensor, k: Tensor, v: Tensor, k_r: Tensor, v_r: Tensor, heads: int) -> Callable[[], Tensor]:
        import comfy.ldm.modules.attention as host

        core = pack("attention")
        references = [core.ReferenceTokens(k_r, v_r, k_r.new_full((k_r.shape[1],), WEIGHT))]
        channels = core.log_weight_channels(q, k.shape[1], references, heads)
        attention = getattr(host, kernel)
        return lambda: core.self_subject_attention(q, k, v, references, heads, attention, None, channels)

    return way


def _by_bias(q: Tensor, k: Tensor, v: Tensor, k_r: Tensor, v_r: Tensor, heads: int) -> Callable[[], Tensor]:
    bias = _bias(q, k_r, k.shape[1])

    def run() -> Tensor:
        keys, values = (torch.cat([x, r.expand(len(q), -1, -1)], dim=1) for x, r in ((k, k_r), (v, v_r)))
        return _torch(q, keys, values, bias, heads)

    return run


def _by_bias_in_a_buffer(q: Tensor, k: Tensor, v: Tensor, k_r: Tensor, v_r: Tensor, heads: int) -> Callable[[], Tensor]:
    """The reference's keys and values are already in the buffer, for all rows."""
    bias, own = _bias(q, k_r, k.shape[1]), k.shape[1]
    keys, values = (torch.cat([x, r.expand(len(q), -1, -1)], dim=1) for x, r in ((k, k_r), (v, v_r)))

    def run() -> Tensor:
        keys[:, :own], values[:, :own] = k, v
        return _torch(q, keys, values, bias, heads)

    return run


def _by_log_sum_exp(q: Tensor, k: Tensor, v: Tensor, k_r: Tensor, v_r: Tensor, heads: int) -> Callable[[], Tensor]:
    """Two calls of a kernel that returns the log-sum-exp, for one weight of all tokens: only outputs are joined."""
    aten = torch.ops.aten
    on_cpu = q.device.type == "cpu"
    kernel = aten._scaled_dot_product_flash_attention_for_cpu if on_cpu else aten._scaled_dot_product_flash_attention

    def run() -> Tensor:
        queries = _split(q, heads)
        own, own_lse, *_ = kernel(queries, _split(k, heads), _split(v, heads))
        keys, values = (_split(x, heads).expand(len(q), -1, -1, -1) for x in (k_r, v_r))
        read, read_lse, *_ = kernel(queries, keys, values)
        share = (read_lse + math.log(WEIGHT) - own_lse).sigmoid().to(q.dtype)  # [B, h, N], or [B, N, h] on a CPU
        share = share if share.shape == own.shape[:3] else share.mT
        return _joined(torch.lerp(own, read, share[..., None]))

    return run


WAYS: dict[str, Way] = {
    "channels, the host's kernel": _of_the_pack("optimized_attention"),
    "channels, torch's kernel": _of_the_pack("attention_pytorch"),
    "bias": _by_bias,
    "bias, buffer kept": _by_bias_in_a_buffer,
    "log-sum-exp": _by_log_sum_exp,
}
