"""Eq. 1, and an IP-Adapter's formula, for a whole U-Net: beside `plain`, as plainly; and the files that they come from.

Of the pack this uses the encoder's weights by their names in the file; of the host the places between attentions.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import comfy.clip_vision
import plain
import pytest
import torch
from dreamtuner_pack.dreamtuner_core.encoder.file import Origin, save
from dreamtuner_pack.dreamtuner_core.encoder.model import EncoderConfig, SubjectEncoder
from dreamtuner_pack.dreamtuner_core.encoder.tower import TowerConfig
from families import SHAPES, draw_weights
from graph import shared_model
from plain import Applied, attention
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

TOWER = TowerConfig(side=32, patch=8, width=24, layers=4, heads=2)
CLIP = {"hidden_size": 32, "layers": 6, "tokens": 17, "projection": 40}
ORDER = {"input": 0, "output": 1, "middle": 2}


# --- files -----------------------------------------------------------------------------------------------------------


def layers_of(family: str) -> dict[tuple[str, int, int], Any]:
    """Every transformer block by its place, in the order in which they run."""
    unet = shared_model(family).model.diffusion_model
    parts = [("input", unet.input_blocks), ("middle", [unet.middle_block]), ("output", unet.output_blocks)]
    return {
        (part, i, j): block
        for part, modules in parts
        for i, module in enumerate(modules)
        for transformer in module
        if hasattr(transformer, "transformer_blocks")
        for j, block in enumerate(transformer.transformer_blocks)
    }


def own_file(path: Path, family: str, tower: bool, seed: int = 4) -> None:
    """A subject encoder of seeded random weights, with a tower of its own or for the tiny CLIP."""
    fields: dict[str, Any] = {"tower": TOWER}
    if not tower:
        fields = {"tower_width": CLIP["hidden_size"], "tower_layers": CLIP["layers"], "tokens": CLIP["tokens"]}
    unet = shared_model(family).model.diffusion_model
    encoder = SubjectEncoder(EncoderConfig.for_unet(unet, family, **fields))
    draw_weights(encoder, seed)
    save(path, encoder, Origin({"steps": 0}, "CC0"))


def ip_adapter_file(path: Path, family: str, plus: bool, seed: int = 5) -> None:
    """Of the public files' layout, seeded random weights."""
    context, width = SHAPES[family]["context_dim"], 64
    shapes: dict[str, tuple[int, ...]] = {"proj.weight": (4 * context, CLIP["projection"]), "proj.bias": (4 * context,)}
    shapes |= {"norm.weight": (context,), "norm.bias": (context,)}
    if plus:
        shapes = {"latents": (1, 6, width), "proj_in.weight": (width, CLIP["hidden_size"]), "proj_in.bias": (width,)}
        shapes |= {"proj_out.weight": (context, width), "proj_out.bias": (context,)}
        shapes |= {"norm_out.weight": (context,), "norm_out.bias": (context,)}
        for i in range(2):
            norms = [f"0.norm{n}.{p}" for n in (1, 2) for p in ("weight", "bias")] + ["1.0.weight", "1.0.bias"]
            sizes = {"0.to_q": (width, width), "0.to_kv": (2 * width, width), "0.to_out": (width, width)}
            sizes |= {"1.1": (4 * width, width), "1.3": (width, 4 * width)}
            shapes |= {f"layers.{i}.{name}": (width,) for name in norms}
            shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in sizes.items()}
    names = {f"image_proj.{name}": shape for name, shape in shapes.items()}
    for i, place in enumerate(sorted(layers_of(family), key=lambda layer: ORDER[layer[0]])):
        inner = layers_of(family)[place].attn2.to_k.weight.shape[0]
        names |= {f"ip_adapter.{2 * i + 1}.to_{kind}_ip.weight": (inner, context) for kind in "kv"}
    draw = torch.Generator().manual_seed(seed)
    scale = {name: 1.0 if len(shape) == 1 else shape[-1] ** -0.5 for name, shape in names.items()}
    save_file({name: torch.randn(shape, generator=draw) * scale[name] for name, shape in names.items()}, path)


FILES: dict[str, Callable[[Path, str], None]] = {
    "own tower": lambda path, family: own_file(path, family, tower=True),
    "CLIP": lambda path, family: own_file(path, family, tower=False),
    "IP-Adapter": lambda path, family: ip_adapter_file(path, family, plus=False),
    "IP-Adapter plus": lambda path, family: ip_adapter_file(path, family, plus=True),
}


def file_name(kind: str, family: str) -> str:
    return f"{family} {kind}.safetensors"


@cache
def tiny_clip(layers: int = CLIP["layers"]) -> comfy.clip_vision.ClipVisionModel:
    """The host's CLIP vision model, tiny, of seeded random weights."""
    config = {"hidden_size": CLIP["hidden_size"], "num_hidden_layers": layers, "num_attention_heads": 2}
    config |= {"intermediate_size": 64, "hidden_act": "gelu", "num_channels": 3, "patch_size": 8, "image_size": 32}
    config |= {"model_type": "clip_vision_model", "projection_dim": CLIP["projection"]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        clip = comfy.clip_vision.ClipVisionModel(path)
    draw_weights(clip.model, 6)
    return clip


# --- the formulas ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coarse:
    """One encoded subject at work, as Apply Subject Encoder has it."""

    subject: Any
    strength: float = 0.5
    start: float = 0.0
    end: float = 1.0


def weights_of(coarse: Coarse) -> dict[str, Tensor]:
    return {name: w.float() for name, w in coarse.subject.encoding.encoder.model.state_dict().items()}


def sea(weights: dict[str, Tensor], tokens: Tensor, h: Tensor, options: dict[str, Any]) -> Tensor:
    """SEA(LN(h), SE(r)) in the block where the options are. weights: of the whole file, by their names in it."""
    prefix = "attentions.{}_{}_{}.".format(*options["block"], options["block_index"])
    w = {name.removeprefix(prefix): v.to(h.dtype) for name, v in weights.items() if name.startswith(prefix)}
    tokens = tokens.to(h.dtype).expand(len(h), -1, -1)
    q = F.layer_norm(h, h.shape[-1:], w["norm.weight"], w["norm.bias"]) @ w["to_q.weight"].T
    out = attention(q, tokens @ w["to_k.weight"].T, tokens @ w["to_v.weight"].T, options["n_heads"])
    return out @ w["to_out.weight"].T + w["to_out.bias"]


def image_attention(coarse: Coarse, q: Tensor, wanted: bool, options: dict[str, Any], family: str) -> Tensor:
    """Attention(q, k_ip, v_ip)."""
    here = (*options["block"], options["block_index"])
    number = 2 * sorted(layers_of(family), key=lambda layer: ORDER[layer[0]]).index(here) + 1
    encoding, w = coarse.subject.encoding, weights_of(coarse)
    tokens = (encoding.tokens if wanted else encoding.without).to(q.dtype).expand(len(q), -1, -1)
    k, v = (tokens @ w[f"ip_adapter.{number}.to_{kind}_ip.weight"].to(q.dtype).T for kind in "kv")
    return attention(q, k, v, options["n_heads"])


def seeing(coarse: list[Coarse], wanted: bool, family: str) -> dict[str, Any]:
    """transformer_options in which one side sees these subjects."""
    before = [c for c in coarse if c.subject.encoding.without is None and wanted]
    beside = [c for c in coarse if c.subject.encoding.without is not None]

    def middle(h: Tensor, options: dict[str, Any]) -> Tensor:
        return h + sum(c.strength * sea(weights_of(c), c.subject.encoding.tokens, h, options) for c in before)

    def cross(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        text = attention(q, k, v, options["n_heads"])
        return text + sum(c.strength * image_attention(c, q, wanted, options, family) for c in beside)

    options: dict[str, Any] = {"patches": {"middle_patch": [middle] if before else []}, "patches_replace": {}}
    if beside:
        options["patches_replace"]["attn2"] = dict.fromkeys(layers_of(family), cross)
    return options


def eps(
    family: str, wanted: bool, coarse: list[Coarse], model: Any, x: Tensor, sigma: Tensor, text: list,
    applied: list[Applied], reference_sigma: Tensor, monkeypatch: pytest.MonkeyPatch,
) -> Tensor:  # fmt: skip
    """`plain.eps` in a U-Net that sees the encoded subjects; a reference pass sees its own subject's."""
    network, unet = plain.network, model.diffusion_model

    def seen(model: Any, x: Tensor, sigma: Tensor, time: Tensor, text: list, size: Any, attn1: Any) -> Tensor:
        own = [a.subject for a in applied if text is a.subject.caption]
        more = seeing([c for c in coarse if c.subject in own] if own else coarse, wanted or bool(own), family)

        def told(*args: Any, transformer_options: dict[str, Any], **kwargs: Any) -> Tensor:
            replaced = {**transformer_options["patches_replace"], **more["patches_replace"]}
            options = {**transformer_options, "patches": more["patches"], "patches_replace": replaced}
            return type(unet).forward(unet, *args, transformer_options=options, **kwargs)

        with monkeypatch.context() as patching:
            patching.setattr(unet, "forward", told)
            return network(model, x, sigma, time, text, size, attn1)

    with monkeypatch.context() as patching:
        patching.setattr(plain, "network", seen)
        return plain.eps(model, x, sigma, text, applied, reference_sigma)


def sample(
    family: str, patcher: Any, positive: list, negative: list, noise: Tensor, coarse: list[Coarse],
    applied: list[Applied], guidance: Any, seed: int, steps: int, cfg: float, monkeypatch: pytest.MonkeyPatch,
) -> Tensor:  # fmt: skip
    """`plain.sample`, the wanted side with the encoded subjects and the unwanted side without."""
    model, levels = patcher.model, patcher.model.model_sampling
    times = torch.linspace(levels.num_timesteps - 1, 0, steps)
    sigmas = [levels.sigma(t) for t in times] + [torch.tensor(0.0)]
    x = noise * (1 + sigmas[0] ** 2) ** 0.5

    def active(thing: Any, sigma: Tensor) -> bool:
        return bool(levels.percent_to_sigma(thing.end) <= sigma <= levels.percent_to_sigma(thing.start))

    for t, sigma, following in zip(times, sigmas, sigmas[1:]):
        read, seen = [a for a in applied if active(a, sigma)], [c for c in coarse if active(c, sigma)]
        dt, dt_uncond = (guidance.dt, guidance.dt_uncond) if guidance else (0.0, 0.0)

        def side(wanted: bool, text: list, read: list[Applied], level: Tensor, seen=seen, x=x, sigma=sigma) -> Tensor:
            return eps(family, wanted, seen, model, x, sigma, text, read, level, monkeypatch)

        w, other = cfg, None
        if guidance and read and guidance.toward_reference(seed, float(sigma)):
            w, other = guidance.reference_scale, side(False, positive, [], sigma)  # (4)
        elif cfg != 1.0:
            other = side(False, negative, read, levels.sigma(t + dt_uncond))  # (5)
        step = side(True, positive, read, levels.sigma(t - dt))
        if other is not None:
            step = w * step - (w - 1) * other
        x = x + step * (following - sigma)
    return model.process_latent_out(x)
