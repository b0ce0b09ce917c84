"""Regular images (section 3.3): they resemble the subject, so that the tuning learns only what makes it different.

The untrained model generates them, with self-subject attention without a mask and the subject's caption. Each has its
own seed, so a larger set begins with the same images. They are cached on disk by a hash of their inputs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...subject import Subject
from .. import fingerprint
from ..apply import with_encoder, with_settings, with_subject
from ..files import read, write
from ..settings import KEY, AppliedEncoder, AppliedSubject, Settings
from .files import regular_folder

STEPS, CFG, SAMPLER, SCHEDULER = 20, 5.0, "dpmpp_2m", "karras"
REFERENCE_WEIGHT = 3.0  # w_ref, if no subject is applied to the model
ENCODER_STRENGTH = 0.2  # beta, if no encoder is applied and the subject is encoded
SETS_CACHED = 64  # sets of regular images on disk; the least recently used is deleted first

Drawn = Callable[[int, int], None]
"""(finished images, all images), called before the first one and after each."""


def regular_latents(
    model: ModelPatcher,
    vae: Any,
    subject: Subject | None,
    positive: Any,
    negative: Any,
    latent_shape: torch.Size,
    count: int,
    drawn: Drawn,
) -> Tensor:
    """Unscaled latents of the regular images, [count, 2, C, h, w], each plain and of the flipped image, on the CPU.

    subject: the one to resemble; None uses only the text (the prior of plain DreamBooth). latent_shape: (1, C, h, w).
    """
    if count == 0:
        return torch.empty(0, 2, *latent_shape[1:])
    key = _key(model, vae, subject, positive, negative, latent_shape)
    folder = regular_folder(key)
    drawing = _bare(model) if subject is None else _resembling(model, subject)
    found: list[Tensor] = []
    for i in range(count):
        drawn(i, count)
        path = folder / f"{i:04}.safetensors"
        cached = read(path)
        pair = None if cached is None else cached[0].get("latents")
        if pair is None or not _is_valid(pair, torch.Size((2, *latent_shape[1:]))):
            seed = int(fingerprint.Fingerprint().add(f"{key}:{i}").text()[:15], 16)
            latent = draw(drawing, positive, negative, latent_shape, seed)
            pair = flipped_pair(vae, latent, vae.decode(latent).clamp(0, 1))
            write(path, {"latents": pair}, {})
        found.append(pair)
    drawn(count, count)
    _forget_oldest(folder)
    return torch.stack(found)


def _is_valid(pair: Tensor, shape: torch.Size) -> bool:
    return pair.shape == shape and pair.dtype == torch.float32 and bool(torch.isfinite(pair).all())


def flipped_pair(vae: Any, latent: Tensor, picture: Tensor) -> Tensor:
    """The latent [1, C, h, w], and that of the flipped picture [1, H, W, 3] in 0..1: [2, C, h, w] on the CPU."""
    return torch.cat([x.float().cpu() for x in (latent, vae.encode(picture.flip(2)[..., :3]))])


def draw(
    model: ModelPatcher, positive: Any, negative: Any, latent_shape: torch.Size, seed: int, steps: int = STEPS
) -> Tensor:
    """Sample one latent [1, C, h, w], as the host's KSampler does."""
    empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros(latent_shape))
    noise = comfy.sample.prepare_noise(empty, seed)
    return comfy.sample.sample(
        model,
        noise,
        steps=steps,
        cfg=CFG,
        sampler_name=SAMPLER,
        scheduler=SCHEDULER,
        positive=positive,
        negative=negative,
        latent_image=empty,
        disable_pbar=True,
        seed=seed,
    )


def _bare(model: ModelPatcher) -> ModelPatcher:
    """The model without any subject."""
    return model if model.get_attachment(KEY) is None else with_settings(model, lambda _: Settings())


def _resembling(model: ModelPatcher, subject: Subject) -> ModelPatcher:
    """The model with self-subject attention without masks, and with the subject encoder if the subject is encoded.

    If subjects or encoders are applied to the model already, they are used instead of this subject.
    """

    def unmasked(applied: AppliedSubject) -> AppliedSubject:
        return replace(applied, subject=replace(applied.subject, mask=None))

    settings = model.get_attachment(KEY)
    if settings is None or not settings.subjects:
        model = with_subject(model, AppliedSubject(subject, REFERENCE_WEIGHT))
    if subject.encoding is not None and (settings is None or not settings.encoders):
        model = with_encoder(model, AppliedEncoder(subject, ENCODER_STRENGTH))
    return with_settings(model, lambda s: replace(s, subjects=tuple(map(unmasked, s.subjects))))


def _key(
    model: ModelPatcher, vae: Any, subject: Subject | None, positive: Any, negative: Any, latent_shape: torch.Size
) -> str:
    key = fingerprint.Fingerprint().add(fingerprint.of_model(model), fingerprint.of_patches(model))
    key.add(fingerprint.of_network(vae.first_stage_model), tuple(latent_shape))
    for cross, more in (*positive, *negative):
        key.add(cross, *([] if more.get("pooled_output") is None else [more["pooled_output"]]))
    key.add("class" if subject is None else [fingerprint.of_subject(subject), REFERENCE_WEIGHT, ENCODER_STRENGTH])
    return key.add(STEPS, CFG, SAMPLER, SCHEDULER).text()[:32]


def _forget_oldest(used: Path) -> None:
    """Delete the least recently used sets of regular images, beyond SETS_CACHED. A folder's mtime is its last use."""
    with suppress(OSError):  # not a reason to stop a tuning
        used.touch()
        sets = sorted(used.parent.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
        for folder in sets[SETS_CACHED:]:
            shutil.rmtree(folder, ignore_errors=True)  # with what a killed process left in it
