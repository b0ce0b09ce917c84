"""Likeness and text match by the image towers of the host's CLIP vision loader: CLIP and DINOv2."""

from __future__ import annotations

from typing import Any

import torch
from comfy.clip_model import CLIPVisionModelProjection
from torch import Tensor

TEXT_ENCODERS = ("clip_g", "clip_h", "clip_l")  # in the order in which the host takes its pooled text


def tower_name(clip_vision: Any) -> str:
    """For an artist to read."""
    return "CLIP" if isinstance(clip_vision.model, CLIPVisionModelProjection) else "DINOv2"


def picture_embedding(clip_vision: Any, picture: Tensor) -> Tensor:
    """Of a square picture [1, H, W, 3]: [C]."""
    found = clip_vision.encode_image(picture)["image_embeds"]
    if found is None or not torch.isfinite(found).all():
        raise ValueError(
            "the clip_vision gave no finite embedding of a picture; load another CLIP or DINOv2 with Load CLIP Vision."
        )
    return found[0].float()


def text_embedding(clip: Any, text: str, clip_vision: Any) -> Tensor:
    """Of the text, in the space of the tower's pictures: [C].

    Raises ValueError, in one sentence, where the two were not trained as a pair.
    """
    if not text.strip():
        raise ValueError("the text to match is empty; write what the pictures should show, or unlink clip.")
    size = _projection_size(clip)
    tower = getattr(getattr(clip_vision.model, "visual_projection", None), "out_features", 0)
    if tower != size:
        raise ValueError(
            f"the clip's text has {size} features and the clip_vision's pictures {tower or 'none of a text'}, which do "
            "not go together; for SDXL load CLIP-ViT-bigG as clip_vision, for SD2.x CLIP-ViT-H."
        )
    _, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    return pooled[0].float().cpu()


def _projection_size(clip: Any) -> int:
    """Width of the text as projected beside pictures. Raises ValueError for a CLIP that was cut off before that."""
    encoders = (getattr(clip.cond_stage_model, name, None) for name in TEXT_ENCODERS)
    encoder: Any = next((found for found in encoders if found is not None), None)
    projection = getattr(getattr(encoder, "transformer", None), "text_projection", None)
    weight = getattr(projection, "weight", None)
    if weight is None or not encoder.return_projected_pooled or torch.equal(weight.cpu(), torch.eye(*weight.shape)):
        raise ValueError(
            "this clip has no text projection, as in every SD1.x checkpoint, so its text cannot be compared with "
            "pictures; link the CLIP of an SDXL or SD2.x checkpoint, or unlink clip."
        )
    return weight.shape[0]
