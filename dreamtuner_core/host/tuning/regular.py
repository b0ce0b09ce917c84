"""Regular pictures (section 3.3): the host draws what resembles the subject, so that only what tells it apart is left.

They come from the model as it is, self-subject attention without a mask and the subject's own caption; each from its
own seed, so that any number of them begins with the same ones. Kept on disk by what they depend on.
"""

from __future__ import annotations

from collections.abc import Callable
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
REFERENCE_WEIGHT = 3.0  # w_ref where the model does not carry the subject already
ENCODER_STRENGTH = 0.2  # beta where it does not, and the subject is encoded
SETS_KEPT = 64  # of regular pictures on disk; the one not used for longest goes first

Drawn = Callable[[int, int], None]
"""(pictures there, pictures in all), called before the first one and after each."""


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
    """[count, 2, C, h, w]: latents as the VAE gives them, each plain and of the flipped picture.

    subject: what they shall resemble; None draws the bare text (plain DreamBooth's prior).
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
        kept = read(path)
        pair = None if kept is None else kept[0].get("latents")
        if pair is None or not _is_whole(pair, torch.Size((2, *latent_shape[1:]))):
            seed = int(fingerprint.Fingerprint().add(f"{key}:{i}").text()[:15], 16)
            latent = draw(drawing, positive, negative, latent_shape, seed)
            pair = flipped_pair(vae, latent, vae.decode(latent).clamp(0, 1))
            write(path, {"latents": pair}, {})
        found.append(pair)
    drawn(count, count)
    _forget_oldest(folder)
    return torch.stack(found)


def _is_whole(pair: Tensor, shape: torch.Size) -> bool:
    return pair.shape == shape and pair.dtype == torch.float32 and bool(torch.isfinite(pair).all())


def flipped_pair(vae: Any, latent: Tensor, picture: Tensor) -> Tensor:
    """[2, C, h, w]: the latent and that of the flipped picture [1, H, W, 3], on the CPU."""
    return torch.cat([x.float().cpu() for x in (latent, vae.encode(picture.flip(2)[..., :3]))])


def draw(
    model: ModelPatcher, positive: Any, negative: Any, latent_shape: torch.Size, seed: int, steps: int = STEPS
) -> Tensor:
    """One latent [1, C, h, w] by the host's sampler, as its KSampler does it."""
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
    """The model without what it carries of any subject."""
    return model if model.get_attachment(KEY) is None else with_settings(model, lambda _: Settings())


def _resembling(model: ModelPatcher, subject: Subject) -> ModelPatcher:
    """The model with self-subject attention, every mask off, and the subject encoder where the subject is encoded.

    What the model carries of either already is taken in place of the subject at its usual strength.
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
    """Keep the folder of regular pictures bounded. A set counts as used when its folder's time is set."""
    try:
        used.touch()
        sets = sorted(used.parent.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
        for folder in sets[SETS_KEPT:]:
            for file in folder.glob("*.safetensors"):
                file.unlink()
            folder.rmdir()
    except OSError:
        pass  # an untidy folder is no reason to stop a tuning
