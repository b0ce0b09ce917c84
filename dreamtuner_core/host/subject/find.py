"""Finding the subject under the host's model management."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...picture.checked import checked_pictures
from ...picture.find_subject import THRESHOLD, as_mask, smoothed
from ...picture.preview import panels
from ...picture.u2net import normalised, read_network
from ...ranges import check_choice, check_number

WEIGHTS = Path(__file__).parents[2] / "weights" / "u2netp.safetensors"
KEEP = ("all", "largest")
MOST_GROWTH = 256  # pixels
MANY = 0.98  # share of a picture: above it, there is no background
PREVIEW = 512  # pixels of its height
MEMORY = 300 * 2**20  # bytes for one image, without the weights


def load_network() -> ModelPatcher:
    """The shipped network, on the devices that the host chooses. It has 2.3 MB, so it is not cached."""
    management = comfy.model_management
    return ModelPatcher(read_network(WEIGHTS), management.get_torch_device(), management.unet_offload_device())


def find_subject(image: Tensor, threshold: float = THRESHOLD, grow: int = 0, keep: str = "all") -> Tensor:
    """The mask of each image's subject: image [B, H, W, 3] in 0..1 -> mask [B, H, W] of zeros and ones.

    All zeros where nothing stands out. threshold, grow, keep: as find_subject.as_mask takes them.
    """
    patcher = load_network()
    comfy.model_management.load_models_gpu([patcher], memory_required=MEMORY)
    masks = []
    progress = comfy.utils.ProgressBar(len(image)) if len(image) > 1 else None  # one alone may be a part of longer work
    for picture in image:
        seen = normalised(picture[None, ..., :3]).to(patcher.load_device)
        with torch.inference_mode():
            found = (patcher.model(seen) + patcher.model(smoothed(seen))).cpu() / 2
        masks.append(as_mask(found, picture.shape[:2], threshold, grow, keep))
        comfy.model_management.throw_exception_if_processing_interrupted()
        if progress is not None:
            progress.update(1)
    return torch.cat(masks)


class Found(NamedTuple):
    """mask: [B, H, W]. preview: [B, H', W', 3], the outline and the background. notes: keys of hints.NOTES."""

    mask: Tensor
    preview: Tensor
    notes: list[str]


def find_and_show(image: Tensor, threshold: float, grow: int, keep: str) -> Found:
    """find_subject of image [B, H, W, 3] with a preview. Raises ValueError, in one sentence, if nothing stands out."""
    check_number("threshold", threshold, 0.0, 1.0)
    check_number("grow", grow, -MOST_GROWTH, MOST_GROWTH, whole=True)
    check_choice("keep", keep, KEEP)
    image = checked_pictures(image)
    mask = find_subject(image, threshold, grow, keep)
    shares = mask.mean((1, 2))
    if empty := [i + 1 for i, share in enumerate(shares) if share == 0]:
        which = "this picture" if len(image) == 1 else f"picture {empty[0]} of {len(image)}"
        raise ValueError(f"nothing stands out in {which}; paint the subject, or lower the threshold.")
    notes = ["all_subject"] if bool((shares > MANY).any()) else []
    return Found(mask, torch.cat(panels(image, mask, PREVIEW), dim=2), notes)
