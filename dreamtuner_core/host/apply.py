"""What the nodes call: each function gives a clone of the model with one more setting noted on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..encoder.blocks import attention_shapes, layer_name
from ..encoder.ip_adapter import numbered
from ..encoder.model import EncoderConfig
from ..guidance import Guidance
from ..ranges import check_number
from ..subject import Subject
from .encoder.load import LoadedEncoder
from .merge import warn_when_merged
from .sampling.run import sample
from .settings import KEY, NEGATIVE_WEIGHT, AppliedEncoder, AppliedSubject, Settings
from .unet import context_size, self_attentions


def apply_subject(
    model: ModelPatcher,
    subject: Subject,
    weight: float,
    start: float = 0.0,
    end: float = 1.0,
    region: Tensor | None = None,
    negative_weight: float = NEGATIVE_WEIGHT,
) -> ModelPatcher:
    """A clone of the model with self-subject attention of weight w_ref, from start to end (0..1 of sampling).

    region: MASK [H, W] over the generated image, or [B, H, W], one per image of the batch, or None. negative_weight:
    the share of w_ref, 0..1, for the negative side of guidance. Raises ValueError, in one sentence, if the model does
    not fit the subject or a number is out of range.
    """
    check_number("reference_weight", weight, 0, 100, usual="; 2.5 to 3 is usual")
    check_number("negative_weight", negative_weight, 0, 1, usual=", a share of reference_weight")
    _check_range(start, end)
    for picture in subject.pictures():
        check_fit(model, picture)
    region = None if region is None else _checked_region(region)
    applied = AppliedSubject(subject, weight, start, end, region=region, negative_weight=negative_weight)
    return with_subject(model, applied)


def apply_encoder(
    model: ModelPatcher, subject: Subject, strength: float, start: float = 0.0, end: float = 1.0
) -> ModelPatcher:
    """A clone of the model with subject-encoder attention of strength beta, from start to end (0..1 of sampling).

    Raises ValueError, in one sentence, if the subject is not encoded, or by an encoder of another model family.
    """
    check_number("strength", strength, 0, 10, usual="; 0.2 is usual")
    _check_range(start, end)
    if subject.encoding is None:
        raise ValueError(
            "the subject was encoded without a subject encoder; link Load Subject Encoder to the Encode Subject Image "
            "that it comes from."
        )
    _check_family(model, subject.encoding.encoder)
    return with_encoder(model, AppliedEncoder(subject, strength, start, end))


def apply_guidance(model: ModelPatcher, guidance: Guidance) -> ModelPatcher:
    """A clone of the model with interleaved guidance, Eq. 4-6. Raises ValueError for an unsupported model."""
    self_attentions(model)
    return with_guidance(model, guidance)


def _check_range(start: float, end: float) -> None:
    check_number("start_percent", start, 0, 1)
    check_number("end_percent", end, 0, 1)
    if start > end:
        raise ValueError(f"start_percent must not be above end_percent, but they are {start:g} and {end:g}.")


def _check_family(model: ModelPatcher, encoder: LoadedEncoder) -> None:
    """Raise ValueError, in one sentence, when the encoder was not made for this model's U-Net."""
    layers = self_attentions(model)
    shapes = attention_shapes({layer_name(*layer): block for layer, block in layers.items()})
    config = encoder.model.config
    if isinstance(config, EncoderConfig):
        blocks, fits = len(config.blocks), dict(config.blocks) == shapes
    else:
        inner = {n: shapes[layer_name(*layer)].inner for n, layer in numbered(list(layers))}
        blocks, fits = len(config.pairs), dict(config.pairs) == inner
    width = context_size(model)
    if not fits or config.context_width != width:
        raise ValueError(
            f"'{encoder.name}' is made for {config.family} (text of width {config.context_width}, {blocks} transformer "
            f"blocks), but this model reads text of width {width} in {len(layers)}; load a file for this family."
        )


def check_fit(model: ModelPatcher, subject: Subject) -> None:
    """Raise ValueError, in one sentence, for an unsupported model, or one that does not fit the subject."""
    self_attentions(model)
    channels, expected = subject.latent.shape[1], model.model.latent_format.latent_channels
    if subject.latent.ndim != 4 or channels != expected:
        raise ValueError(
            f"the subject's latent has {channels} channels, but this model works on {expected}; encode the "
            "subject with the VAE of this model's own checkpoint."
        )
    if subject.caption is not None:
        check_text(model, "the subject's caption", subject.caption)


def check_text(model: ModelPatcher, what: str, conditioning: list) -> None:
    """Raise ValueError, in one sentence, for a text that another model's CLIP encoded."""
    expected = context_size(model)
    for cross, more in conditioning:
        if cross.shape[-1] != expected:
            raise ValueError(
                f"{what} has {cross.shape[-1]} features per token, but this model reads {expected}; encode it with the "
                "CLIP of this model's own checkpoint."
            )
        if model.model.adm_channels and not isinstance(more.get("pooled_output"), Tensor):
            raise ValueError(f"{what} has no pooled text, which this model needs; encode it with the model's own CLIP.")


def _checked_region(region: Tensor) -> Tensor:
    """A region MASK as [1 or B, H, W] in 0..1. Raises ValueError if it is empty."""
    region = region.float().reshape(region.shape[:-2].numel(), *region.shape[-2:])
    if not torch.isfinite(region).all():
        raise ValueError("the region mask has NaN or infinite values; check the node that it comes from.")
    if region.numel() == 0 or region.max() <= 0:
        raise ValueError("the region is empty, so the subject could appear nowhere; paint it, or leave it unlinked.")
    return region.clamp(0, 1)


def with_settings(model: ModelPatcher, change: Callable[[Settings], Settings]) -> ModelPatcher:
    """A clone of the model with changed settings, ready for sampling."""
    patched = model.clone()
    patched.set_attachments(KEY, change(model.get_attachment(KEY) or Settings()))
    patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample)
    warn_when_merged(patched)
    return patched


def with_subject(model: ModelPatcher, applied: AppliedSubject) -> ModelPatcher:
    """A clone with one more subject, all images of it."""
    return with_settings(model, lambda s: replace(s, subjects=(*s.subjects, *applied.of_each_picture())))


def with_guidance(model: ModelPatcher, guidance: Guidance) -> ModelPatcher:
    """A clone with interleaved guidance."""
    return with_settings(model, lambda s: replace(s, guidance=guidance))


def with_encoder(model: ModelPatcher, applied: AppliedEncoder) -> ModelPatcher:
    """A clone with one more encoded subject; the encoder's weights are loaded together with the model's."""
    patched = with_settings(model, lambda s: replace(s, encoders=(*s.encoders, applied)))
    patchers = [a.encoding.encoder.patcher for a in patched.get_attachment(KEY).encoders if a.strength > 0]
    patched.set_additional_models(KEY, list({id(p.model): p for p in patchers}.values()))
    return patched
