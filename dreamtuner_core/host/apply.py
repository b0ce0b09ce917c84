"""What the nodes ask for: a model that reads a subject, a model whose steps are guided by it."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance import Guidance
from ..subject import Subject
from .sampling import AppliedSubject, with_guidance, with_subject
from .unet import context_size, self_attentions


def apply_subject(
    model: ModelPatcher,
    subject: Subject,
    weight: float,
    start: float = 0.0,
    end: float = 1.0,
    region: Tensor | None = None,
) -> ModelPatcher:
    """A clone of the model that reads the subject with weight w_ref, from start to end (0..1 of sampling).

    region: MASK [1, H, W] or [H, W] over the picture being made, or None. Raises ValueError, in one sentence, where
    the model cannot read this subject or a number is out of range.
    """
    if not 0 <= weight <= 100:  # NaN too
        raise ValueError(f"reference_weight must be between 0 and 100, but is {weight:g}; 2.5 to 3 is usual.")
    if not 0 <= start <= end <= 1:
        raise ValueError(
            f"start_percent must not lie after end_percent, both in 0..1, but they are {start:g} and {end:g}."
        )
    _check_fit(model, subject)
    region = None if region is None else _checked_region(region)
    return with_subject(model, AppliedSubject(subject, weight, start, end, region))


def apply_guidance(model: ModelPatcher, guidance: Guidance) -> ModelPatcher:
    """A clone of the model whose steps follow Eq. 4-6. Raises ValueError for what is no U-Net of ours."""
    self_attentions(model)
    return with_guidance(model, guidance)


def _check_fit(model: ModelPatcher, subject: Subject) -> None:
    """Raise ValueError, in one sentence, when the model cannot read this subject."""
    self_attentions(model)
    channels, expected = subject.latent.shape[1], model.model.latent_format.latent_channels
    if subject.latent.ndim != 4 or channels != expected:
        raise ValueError(
            f"the subject's latent has {channels} channels, but this model works on {expected}; encode the "
            "subject with the VAE of this model's own checkpoint."
        )
    if subject.caption is None:
        return
    width, expected = subject.caption[0][0].shape[-1], context_size(model)
    if width != expected:
        raise ValueError(
            f"the subject's caption has {width} features a token, but this model reads {expected}; encode the caption "
            "with the CLIP of this model's own checkpoint."
        )
    if model.model.adm_channels and subject.caption[0][1].get("pooled_output") is None:
        raise ValueError(
            "the subject's caption carries no pooled text, which this model needs; encode it with this model's CLIP."
        )


def _checked_region(region: Tensor) -> Tensor:
    """A region MASK as [1, H, W] in 0..1. Raises ValueError for one that is empty or not single."""
    region = region.reshape(region.shape[:-2].numel(), *region.shape[-2:])
    if region.shape[0] != 1:
        raise ValueError(f"expected one region mask, but got a batch of {region.shape[0]}; give one.")
    if not torch.isfinite(region).all():
        raise ValueError("the region mask has values that are no numbers (NaN or infinity); mend the node before it.")
    if region.numel() == 0 or region.max() <= 0:
        raise ValueError("the region is empty, so the subject could appear nowhere; paint it, or leave it unlinked.")
    return region.clamp(0, 1)
