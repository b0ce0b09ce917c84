"""Likeness by the checkpoint's own keys: those of its last self-attention for two pictures with little noise.

Ours, for use without an image tower. It only ranks pictures of one setting: the keys of noise and of burnt pictures
resemble any others, so a figure alone means nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...bank import LayerFeatures
from ...subject import Subject
from ..apply import check_fit
from ..sampling.reference import reference_features, text_conditions
from ..unet import self_attentions

TIMESTEP, TIMESTEPS = 50, 1000  # little noise, so that details remain


def as_subject(vae: Any, picture: Tensor, mask: Tensor | None, like: Subject) -> Subject:
    """A framed picture [1, H, W, 3] and its mask [1, H, W] as a subject with the text and noise of `like`."""
    latent = vae.encode(picture)
    return replace(like, picture=picture, mask=mask, latent=latent, views=())


def keys(model: ModelPatcher, subject: Subject) -> LayerFeatures:
    """The subject's features at the last self-attention: k [1, M, C] of its M tokens.

    Raises ValueError, in one sentence, for a model that cannot read the subject.
    """
    check_fit(model, subject)
    shape = [1, *subject.latent.shape[1:]]
    comfy.model_management.load_models_gpu([model], memory_required=model.memory_required(shape))
    sampling = model.get_model_object("model_sampling")
    sigma = sampling.sigmas[len(sampling.sigmas) * TIMESTEP // TIMESTEPS]
    device = model.load_device
    layer = list(self_attentions(model))[-1]
    timestep = sampling.timestep(sigma).reshape(1).to(device)
    return reference_features(
        model=model.model,
        subject=subject,
        conditions=text_conditions(model, subject, device),
        layers=[layer],
        sigma=float(sigma),
        timestep=timestep,
    )[layer]
