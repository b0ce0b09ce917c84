"""The reference pass: the noised reference goes through the same U-Net on its own; its keys and values are captured."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import comfy.model_base
import comfy.patcher_extension
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import TimestepEmbedSequential
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...bank import Features, LayerFeatures
from ...subject import Subject, token_grid
from ..calls import Text, conditions
from ..encoder.patch import EncoderAtWork, with_encoders
from ..kernels import reference_attention
from ..options import PATCHES, SAMPLE_SIGMAS, SIDES, SIGMAS, UUIDS, Options, Patch, with_replacements
from ..unet import Layer, context_size

EMPTY_TEXT_TOKENS = 77
FORWARDS = ("forward", "_forward")  # methods that other packs override on a module


class _Captured(Exception):
    """Ends the pass at the last layer that is used."""


@contextmanager
def alone(patcher: ModelPatcher) -> Iterator[None]:
    """A context with the plain U-Net: without modules injected and without forwards overridden by other packs.

    Changes to its weights (LoRAs, hooks, replaced layers) stay. Everything is restored at the end.
    """
    unet = patcher.model.diffusion_model
    parts = [unet, *(m for m in unet.modules() if isinstance(m, (TimestepEmbedSequential, BasicTransformerBlock)))]
    with patcher.use_ejected():
        covered = [(part, name, vars(part).pop(name)) for part in parts for name in FORWARDS if name in vars(part)]
        try:
            yield
        finally:
            for part, name, forward in covered:
                setattr(part, name, forward)


def reference_features(
    model: comfy.model_base.BaseModel,
    subject: Subject,
    conditions: dict[str, Tensor],
    layers: list[Layer],
    sigma: float,
    timestep: Tensor,
    encoders: Sequence[EncoderAtWork] = (),
) -> Features:
    """Run one row through the U-Net, without other packs' patches: K and V of the foreground tokens, by layer.

    sigma: the reference's noise level. timestep: [1], the network's timestep for the generated image (it differs from
    sigma's where guidance shifts the reference's noise level). encoders: those applied with this same subject.
    """
    device = timestep.device
    features: Features = {}
    foregrounds: dict[int, tuple[Tensor, Tensor]] = {}

    def foreground(tokens: int) -> tuple[Tensor, Tensor]:
        if tokens not in foregrounds:
            height, width = subject.latent.shape[-2:]
            mask = subject.foreground(*token_grid(height, width, tokens))
            present = torch.nonzero(mask).flatten()
            foregrounds[tokens] = present.to(device), mask[present].to(device)
        return foregrounds[tokens]

    def capture(layer: Layer) -> Patch:
        def keep(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
            present, mask = foreground(k.shape[1])
            features[layer] = LayerFeatures(k[:, present], v[:, present], mask)
            if layer == layers[-1]:
                raise _Captured
            return reference_attention(q, k, v, options)

        return keep

    def at_network_time(executor: Any, x: Tensor, timesteps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return executor(x, timestep, *args, **kwargs)

    level = torch.tensor([sigma], device=device)
    latent = model.process_latent_in(subject.latent.to(device, torch.float32))
    noisy = model.model_sampling.noise_scaling(level, subject.noise().to(device), latent)
    options: Options = {SIGMAS: level, SAMPLE_SIGMAS: level, SIDES: [0], UUIDS: [uuid.uuid4()], PATCHES: {}}
    options = with_replacements(options, "attn1", {layer: capture(layer) for layer in layers})
    options = with_encoders(options, encoders, [True], layers)
    comfy.patcher_extension.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, at_network_time, options)
    with suppress(_Captured):
        model.apply_model(noisy, level, **conditions, transformer_options=options)
    return features


def text_conditions(patcher: ModelPatcher, subject: Subject, device: torch.device) -> dict[str, Tensor]:
    """The conditions of the reference's row: its own caption, or zeros if it has none."""
    model, (height, width) = patcher.model, subject.picture.shape[1:3]
    if subject.caption is None:
        text = Text(torch.zeros(1, EMPTY_TEXT_TOKENS, context_size(patcher)), None)
    else:
        text = Text.of(subject.caption)
    if model.adm_channels and text.pooled is None:
        text = text._replace(pooled=_no_pooled_text(model, height, width, device))
    return conditions(model, subject.latent.to(device), [text], (height, width))


def _no_pooled_text(model: comfy.model_base.BaseModel, height: int, width: int, device: torch.device) -> Tensor:
    """Zeros for a missing pooled text, as wide as y without the model's own numbers: [1, P]."""
    empty = torch.zeros(1, 0)
    try:
        own = model.encode_adm(height=height, width=width, device=device, pooled_output=empty).shape[-1]
    except (KeyError, TypeError, RuntimeError):
        own = 0
    return torch.zeros(1, model.adm_channels - own)
