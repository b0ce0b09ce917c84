"""Eq. 3 to 6 for a whole U-Net, sampled, just as they are written: nothing kept, nothing shared, dense masks.

Of the pack this uses the data (Subject, Guidance) and Eq. 6's draw; of the host the network itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.model_base import BaseModel, ModelType
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn import functional as F

SelfAttention = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]


@dataclass(frozen=True)
class Applied:
    """One subject at work, as Apply Self-Subject Attention has it."""

    subject: Any
    weight: float = 3.0
    start: float = 0.0
    end: float = 1.0
    region: Tensor | None = None
    negative_weight: float = 1.0

    def on_the_unwanted_side(self) -> Applied:
        return replace(self, weight=self.weight * self.negative_weight)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, log_m: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + log m) v, log m dense [N, M]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    mask = None if log_m is None else log_m.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def by_area(mask: Tensor | None, grid: list[int]) -> Tensor:
    """[1, H, W] at that grid of tokens, flat; ones for None."""
    if mask is None:
        return torch.ones(grid[0] * grid[1])
    return F.interpolate(mask[None], tuple(grid), mode="area").flatten()


def network(
    model: BaseModel, x: Tensor, sigma: Tensor, time: Tensor, text: list, size: tuple[int, int], attn1: SelfAttention
) -> Tensor:
    """The U-Net's output for x at noise level sigma, one function in place of all its self-attentions."""
    [[context, more]], dtype = text, model.manual_cast_dtype or model.get_dtype()
    every = {(part, i, j): attn1 for part in ("input", "middle", "output") for i in range(16) for j in range(4)}
    y = {}
    if model.adm_channels:
        told = {"height": size[0], "width": size[1], "prompt_type": "positive", "device": x.device}
        y["y"] = model.encode_adm(pooled_output=more["pooled_output"], **told).to(dtype).expand(len(x), -1)
    return model.diffusion_model(
        (x / (sigma**2 + 1) ** 0.5).to(dtype),
        time.expand(len(x)),
        context=context.to(dtype).expand(len(x), -1, -1),
        transformer_options={"patches_replace": {"attn1": every}},
        **y,
    ).float()


def eps(
    model: BaseModel, x: Tensor, sigma: Tensor, text: list, applied: list[Applied], reference_sigma: Tensor
) -> Tensor:
    """eps(x_t, c, x^r_{t'}, t) with all subjects in one softmax, or eps(x_t, c, none, t) for no subjects."""
    time = model.model_sampling.timestep(sigma)[None].float()
    read = [reference_keys_and_values(model, a.subject, reference_sigma, time) for a in applied]

    def self_subject_attention(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        m = [torch.ones(q.shape[1], k.shape[1])]
        for a, reference in zip(applied, read):
            k_r, v_r, reference_grid = reference[place(options)]
            k, v = torch.cat([k, k_r.expand(len(k), -1, -1)], 1), torch.cat([v, v_r.expand(len(v), -1, -1)], 1)
            m_r = by_area(a.subject.mask, reference_grid)
            m.append(by_area(a.region, grid(options))[:, None] * a.weight * m_r)
        return attention(q, k, v, options["n_heads"], torch.cat(m, dim=1).log())

    size = (8 * x.shape[-2], 8 * x.shape[-1])
    output = network(model, x, sigma, time, text, size, self_subject_attention)
    if model.model_type == ModelType.V_PREDICTION:
        return (x * sigma / (sigma**2 + 1) ** 0.5 + output) / (sigma**2 + 1) ** 0.5
    return output


def reference_keys_and_values(model: BaseModel, subject: Any, sigma: Tensor, time: Tensor) -> dict[Any, tuple]:
    """Pass 1: the noised reference alone; k, v and the grid of every self-attention, all tokens."""
    found = {}

    def keep(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        found[place(options)] = k, v, grid(options)
        return attention(q, k, v, options["n_heads"])

    x = model.process_latent_in(subject.latent) + sigma * subject.noise()
    caption = subject.caption or no_text(model)
    network(model, x, sigma, time, caption, tuple(subject.picture.shape[1:3]), keep)
    return found


def no_text(model: BaseModel) -> list:
    """A CONDITIONING of zeros."""
    widths = model.model_config.unet_config
    pooled = widths.get("adm_in_channels", 0) - 6 * 256  # SDXL's y: the pooled text and six embedded numbers
    return [[torch.zeros(1, 77, widths["context_dim"]), {"pooled_output": torch.zeros(1, max(pooled, 0))}]]


def place(options: dict[str, Any]) -> tuple:
    return (*options["block"], options["block_index"])


def grid(options: dict[str, Any]) -> list[int]:
    return options["activations_shape"][2:]


def sample(
    patcher: ModelPatcher,
    positive: list,
    negative: list,
    noise: Tensor,
    applied: list[Applied],
    guidance: Any | None = None,
    seed: int = 0,
    steps: int = 3,
    cfg: float = 5.0,
) -> Tensor:
    """Euler's method from noise, on the host's `normal` schedule, each step by Eq. 4 or Eq. 5."""
    model: BaseModel = patcher.model
    levels = model.model_sampling
    times = torch.linspace(levels.num_timesteps - 1, 0, steps)
    sigmas = [levels.sigma(t) for t in times] + [torch.tensor(0.0)]
    x = noise * (1 + sigmas[0] ** 2) ** 0.5
    for t, sigma, following in zip(times, sigmas, sigmas[1:]):
        active = [a for a in applied if levels.percent_to_sigma(a.end) <= sigma <= levels.percent_to_sigma(a.start)]
        dt, dt_uncond = (guidance.dt, guidance.dt_uncond) if guidance else (0.0, 0.0)
        wanted = eps(model, x, sigma, positive, active, levels.sigma(t - dt))
        if guidance and active and guidance.toward_reference(seed, float(sigma)):
            w_r = guidance.reference_scale
            step = w_r * wanted - (w_r - 1) * eps(model, x, sigma, positive, [], sigma)  # (4)
        else:
            unwanted = [a.on_the_unwanted_side() for a in active]
            step = cfg * wanted - (cfg - 1) * eps(
                model, x, sigma, negative, unwanted, levels.sigma(t + dt_uncond)
            )  # (5)
        x = x + step * (following - sigma)
    return model.process_latent_out(x)
