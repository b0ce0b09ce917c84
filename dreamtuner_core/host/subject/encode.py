"""From a picture in the host to a Subject."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...bank import ReferenceBank
from ...subject import PRESENT, Subject, frame, preview, subject_mask
from ..encoder.load import LoadedEncoder, encode_picture
from .memory import BankKeeper


def encode_subject(
    image: Tensor,
    vae: Any,
    mask: Tensor | None = None,
    caption: Any | None = None,
    clip: Any | None = None,
    mask_marks: str = "auto",
    resolution: int = 512,
    noise_seed: int = 0,
    subject_encoder: LoadedEncoder | None = None,
) -> tuple[Subject, Tensor]:
    """Frame one picture [1, H, W, 3], encode it, and show what the method will see of it [1, H', 2 W', 3].

    Raises ValueError, in one sentence, for what is no single picture or no mask of it.
    """
    image = _checked_image(image)
    if mask is not None:
        mask = subject_mask(_checked_mask(mask, image), mask_marks)
        if mask.max() <= PRESENT:
            raise ValueError(
                f"the mask leaves nothing of the picture (mask_marks is '{mask_marks}'); set mask_marks to what the "
                "mask marks, or paint the subject."
            )
    picture, framed_mask = frame(image, mask, resolution)
    if caption is None and clip is not None:
        caption = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    if caption is not None and len(caption) != 1:
        raise ValueError(f"expected one caption, but got {len(caption)} combined; link a single text encode.")
    latent = vae.encode(picture)
    if not torch.isfinite(latent).all():
        raise ValueError(
            "the VAE made values that are no numbers (NaN or infinity); run it in fp32, or take another VAE."
        )
    bank = ReferenceBank()
    encoding = None if subject_encoder is None else encode_picture(subject_encoder, picture)
    subject = Subject(picture, framed_mask, latent, caption, noise_seed, bank, BankKeeper(bank), encoding)
    return subject, preview(picture, framed_mask)


def _checked_image(image: Tensor) -> Tensor:
    if image.ndim != 4 or image.shape[-1] < 3 or image.numel() == 0:
        raise ValueError(f"expected one RGB picture, but got a tensor of shape {tuple(image.shape)}.")
    if image.shape[0] != 1:
        raise ValueError(
            f"expected one picture, but got a batch of {image.shape[0]}; for several subjects use one Encode Subject "
            "Image and one Apply each."
        )
    if not torch.isfinite(image).all():
        raise ValueError("the picture has values that are no numbers (NaN or infinity); mend the node before it.")
    return image[..., :3].float().cpu().clamp(0, 1)


def _checked_mask(mask: Tensor, image: Tensor) -> Tensor:
    mask = mask.reshape(mask.shape[:-2].numel(), *mask.shape[-2:]).float().cpu()
    height, width = image.shape[1:3]
    if mask.shape[0] != 1:
        raise ValueError(f"expected one mask, but got a batch of {mask.shape[0]}; give the one of this picture.")
    if not torch.isfinite(mask).all():
        raise ValueError("the mask has values that are no numbers (NaN or infinity); mend the node before it.")
    if mask.numel() == 0 or mask.max() <= 0:
        raise ValueError(
            "the mask is empty (all black), so there is no subject; paint one, or leave the mask unlinked to use the "
            "whole picture. LoadImage gives an empty mask for a picture without transparency."
        )
    if mask.shape[1:] != (height, width):
        raise ValueError(
            f"the mask is {mask.shape[2]}x{mask.shape[1]}, but the picture is {width}x{height}; give the mask of this "
            "very picture."
        )
    return mask.clamp(0, 1)
