"""The training pairs: latents of the reference and of the regular images, scaled for the U-Net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...subject import Subject
from ...tuning.pairs import Pairs
from .job import Job
from .regular import flipped_pair, regular_latents


def make_pairs(job: Job) -> Pairs:
    """The training pairs. Generates the missing regular images: first those like the subject, then the plain class."""
    resembling, of_class = job.config.shares
    bare = job.encoded(job.texts.a_class)
    regular = [
        _regular(job, job.subject, caption(job) or bare, count=resembling, before=0),
        _regular(job, None, bare, count=of_class, before=resembling),
    ]
    scale = job.model.model.process_latent_in
    reference = flipped_pair(job.vae, job.subject.latent, job.subject.picture)
    with torch.inference_mode(False):
        return Pairs(scale(reference.clone()), scale(torch.cat(regular)), _mask(job.subject))


def caption(job: Job) -> Any | None:
    """The subject's caption as the host's CONDITIONING; None if there is none, or it is that of an empty text."""
    caption = job.subject.caption
    return None if caption is None or _same_text(caption, job.encoded("")) else caption


def _regular(job: Job, subject: Subject | None, text: Any, count: int, before: int) -> Tensor:
    """Latents of regular images, [count, 2, C, h, w]. before: how many images the progress bar has counted already."""
    return regular_latents(
        model=job.model,
        vae=job.vae,
        subject=subject,
        positive=text,
        negative=job.encoded(""),
        latent_shape=job.subject.latent.shape,
        count=count,
        drawn=lambda done, _: job.progress.regular(before + done, job.config.regular_pictures),
    )


def _mask(subject: Subject) -> Tensor | None:
    """The subject's mask at the latent's size, plain and flipped: [2, 1, h, w]."""
    if subject.mask is None:
        return None
    height, width = subject.latent.shape[-2:]
    mask = F.adaptive_avg_pool2d(subject.mask.float(), (height, width))
    return torch.stack([mask, mask.flip(-1)]).clone()


def _same_text(caption: Any, other: Any) -> bool:
    return caption[0][0].shape == other[0][0].shape and torch.equal(caption[0][0].cpu(), other[0][0].cpu())
