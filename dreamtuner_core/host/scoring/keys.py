"""Likeness by the checkpoint's own keys: what its last self-attention makes of two pictures that are hardly noised.

Ours, where no image tower is at hand. It puts pictures of one setting in order and no more: noise and burnt pictures
have keys that resemble anything, so its figures are no measure of their own.
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

TIMESTEP, TIMESTEPS = 50, 1000  # hardly noised: details are still there


def as_subject(vae: Any, picture: Tensor, mask: Tensor | None, like: Subject) -> Subject:
    """A framed picture [1, H, W, 3] as the same kind of subject: its text and noise, its own latent."""
    latent = vae.encode(picture)
    return replace(like, picture=picture, mask=mask, latent=latent, views=())


def keys(model: ModelPatcher, subject: Subject) -> LayerFeatures:
    """Of the subject's tokens at the last self-attention. Raises ValueError for a model that cannot read it."""
    check_fit(model, subject)
    shape = [1, *subject.latent.shape[1:]]
    comfy.model_management.load_models_gpu([model], memory_required=model.memory_required(shape))
    sampling = model.get_model_object("model_sampling")
    sigma = sampling.sigmas[len(sampling.sigmas) * TIMESTEP // TIMESTEPS]
    device = model.load_device
    layer = list(self_attentions(model))[-1]
    timestep = sampling.timestep(sigma).reshape(1).to(device)
    conditions = text_conditions(model, subject, device)
    return reference_features(model.model, subject, conditions, [layer], float(sigma), timestep)[layer]
