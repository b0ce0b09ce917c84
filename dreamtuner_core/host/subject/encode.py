"""From a picture in the host to a Subject."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...picture.checked import all_finite, checked_pictures
from ...picture.hints import hints
from ...picture.light import measured, mended, scene_pixels, subject_pixels
from ...picture.masks import PRESENT, without_specks
from ...picture.preview import preview
from ...ranges import check_choice, check_number
from ...subject import Subject, frame, subject_mask
from ..encoder.load import LoadedEncoder, encode_picture
from . import find

AUTO = 0  # the resolution that the family was trained on
RESOLUTIONS = {768: 512, 1024: 768, 2048: 1024, 1280: 1024}  # by the width of its texts: SD1, SD2, SDXL and its refiner
SMALLEST, LARGEST = 64, 2048
MARKS = ("auto", "subject", "background")
FIND = WHEN_NO_MASK, NEVER = ("when there is no mask", "never")
LIGHT = AS_IT_IS, MEND = ("as it is", "auto")
NO_MASK = (64, 64)  # the size of LoadImage's empty mask for a picture without transparency
FEW = 0.005  # share of the picture: a smaller found area is not a subject


class Encoded(NamedTuple):
    """preview: [1, H', W', 3]; notes: keys of hints.NOTES, what was decided first."""

    subject: Subject
    preview: Tensor
    notes: list[str]


def encode_subject(
    image: Tensor,
    vae: Any,
    mask: Tensor | None = None,
    caption: Any | None = None,
    clip: Any | None = None,
    mask_marks: str = "auto",
    resolution: int = AUTO,
    noise_seed: int = 0,
    subject_encoder: LoadedEncoder | None = None,
    find_subject: str = NEVER,
    light: str = AS_IT_IS,
) -> Encoded:
    """Frame one picture [1, H, W, 3], encode it, and show what the method will see of it.

    Raises ValueError, in one sentence, if image is not a single picture, mask not of its size, or another value is out
    of range.
    """
    check_choice("mask_marks", mask_marks, MARKS)
    check_choice("find_subject", find_subject, FIND)
    check_choice("light", light, LIGHT)
    check_number("noise_seed", noise_seed, 0, 2**64 - 1, whole=True)
    if resolution != AUTO or isinstance(resolution, float):
        check_number("resolution", resolution, SMALLEST, LARGEST, whole=True, usual="; 0 is auto")
    image = _checked_image(image)
    mask, notes = _mask_of(image, mask, mask_marks, find_subject)
    caption = _caption(caption, clip)
    picture, framed_mask = frame(image, mask, resolution or _trained_on(caption, subject_encoder))
    pixels = subject_pixels(picture, framed_mask)
    cut_out = None if "found" in notes else mask  # a picture in which the subject was found has no transparency
    better = measured(pixels, scene_pixels(image, cut_out, pixels)) if light == MEND else None
    if better is not None:
        picture = mended(picture, framed_mask, better)
        notes.append("mended")
    latent = vae.encode(picture)
    if not torch.isfinite(latent).all():
        raise ValueError("the VAE gives NaN or infinite values for this picture; run it in fp32, or use another VAE.")
    encoding = None if subject_encoder is None else encode_picture(subject_encoder, picture)
    subject = Subject(
        picture=picture,
        mask=framed_mask,
        latent=latent,
        caption=caption,
        noise_seed=noise_seed,
        encoding=encoding,
    )
    notes += hints(image, mask, picture, framed_mask)
    return Encoded(subject, preview(image, mask, picture), notes)


def _mask_of(image: Tensor, mask: Tensor | None, marks: str, find_subject: str) -> tuple[Tensor | None, list[str]]:
    """The subject's mask [1, H, W], or None for the whole picture; and how it was found, as keys of NOTES."""
    if mask is not None and mask.shape[-2:] == NO_MASK and not mask.any():
        mask = None
    if mask is None:
        return _found(image) if find_subject == WHEN_NO_MASK else (None, [])
    given = _checked_mask(mask, image)
    mask = subject_mask(given, marks, image, lambda: find.find_subject(image))
    if mask.max() <= PRESENT:
        raise ValueError(
            f"the mask leaves nothing of the picture (mask_marks is '{marks}'); set mask_marks to what the mask "
            "marks, or paint the subject."
        )
    return without_specks(mask), ["turned"] if marks == "auto" and mask is not given else []


def _found(image: Tensor) -> tuple[Tensor | None, list[str]]:
    mask = find.find_subject(image)
    share = mask.mean()
    if share < FEW:
        return None, ["nothing_found"]
    return (None, ["all_subject"]) if share > find.MANY else (mask, ["found"])


def _caption(caption: Any | None, clip: Any | None) -> Any | None:
    """The given caption, else the empty text encoded by this CLIP, else None."""
    if caption is None and clip is not None:
        caption = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    if caption is not None and len(caption) != 1:
        raise ValueError(f"expected one caption, but got {len(caption)} combined; link a single text encode.")
    return caption


def _trained_on(caption: Any | None, encoder: LoadedEncoder | None) -> int:
    """Side of the pictures that the family was trained on, by the width of its texts; 512 if it is unknown."""
    if caption is not None:
        return RESOLUTIONS.get(caption[0][0].shape[-1], 512)
    return 512 if encoder is None else RESOLUTIONS.get(encoder.model.config.context_width, 512)


def _checked_image(image: Tensor) -> Tensor:
    pixels = checked_pictures(image)
    if image.shape[0] != 1:
        raise ValueError(
            f"expected one picture, but got a batch of {image.shape[0]}; select one of them with Image From Batch, or "
            "for several subjects use one Encode Subject Image and one Apply each."
        )
    return pixels


def _checked_mask(mask: Tensor, image: Tensor) -> Tensor:
    mask = mask.reshape(mask.shape[:-2].numel(), *mask.shape[-2:]).float().cpu()
    height, width = image.shape[1:3]
    if mask.shape[0] != 1:
        raise ValueError(f"expected one mask, but got a batch of {mask.shape[0]}; link the mask of this picture.")
    if mask.numel() and not all_finite(mask):
        raise ValueError("the mask has NaN or infinite values; check the node that it comes from.")
    if mask.numel() == 0 or mask.max() <= 0:
        raise ValueError(
            "the mask is empty (all black), so there is no subject; paint one, or leave the mask unlinked to have the "
            "subject found."
        )
    if mask.shape[1:] != (height, width):
        raise ValueError(
            f"the mask is {mask.shape[2]}x{mask.shape[1]}, but the picture is {width}x{height}; link the mask of this "
            "picture."
        )
    return mask.clamp(0, 1)
