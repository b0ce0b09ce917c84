"""The image towers that measure likeness and text match: those of the host's Load CLIP Vision, CLIP and DINOv2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from comfy.clip_model import CLIPVisionModelProjection
from torch import Tensor

TEXT_ENCODERS = ("clip_g", "clip_h", "clip_l")  # in the order in which the host takes its pooled text


class Tower(Protocol):
    """Embeds pictures, and texts in the same space. name: shown to the artist."""

    @property
    def name(self) -> str: ...

    def picture(self, picture: Tensor) -> Tensor:
        """The embedding [C] of the middle square of a picture [1, H, W, 3] in 0..1."""

    def text(self, text: str) -> Tensor:
        """The embedding [C] of the text. Raises ValueError, in one sentence, for a tower that cannot read text."""


@dataclass(frozen=True)
class HostTower:
    """The host's own CLIP_VISION, with the CLIP whose texts belong to it."""

    clip_vision: Any
    clip: Any | None = None

    @property
    def name(self) -> str:
        return "CLIP" if isinstance(self.clip_vision.model, CLIPVisionModelProjection) else "DINOv2"

    def picture(self, picture: Tensor) -> Tensor:
        """See Tower. Raises ValueError, in one sentence, for an embedding that is not finite."""
        found = self.clip_vision.encode_image(picture)["image_embeds"]
        if found is None or not torch.isfinite(found).all():
            raise ValueError(
                "the clip_vision gives no finite embedding of a picture; load another CLIP or DINOv2 with Load CLIP "
                "Vision."
            )
        return found[0].float()

    def text(self, text: str) -> Tensor:
        """See Tower. Raises ValueError, in one sentence, if the CLIP is not the pair of the image tower."""
        clip, size = self.clip, _projection_size(self.clip)
        tower = getattr(getattr(self.clip_vision.model, "visual_projection", None), "out_features", 0)
        if clip is None or tower != size:
            raise ValueError(
                f"the clip and the clip_vision are not a pair (text of width {size}, pictures of width "
                f"{tower or 'none, without a text space'}); for SDXL load CLIP-ViT-bigG as clip_vision, for SD2.x "
                "CLIP-ViT-H."
            )
        _, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
        return pooled[0].float().cpu()


def _projection_size(clip: Any) -> int:
    """Width of the text embeddings that compare with pictures. Raises ValueError for a CLIP without that projection."""
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
