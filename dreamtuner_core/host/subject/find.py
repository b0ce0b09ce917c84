"""Finding the subject under the host's model management."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import load_file
from torch import Tensor

from ...find_subject import THRESHOLD, as_mask, standing_out
from ...u2net import U2NetP

WEIGHTS = Path(__file__).parents[2] / "weights" / "u2netp.safetensors"
MEMORY = 300 * 2**20  # bytes that one picture's pass takes beside the weights


def load_network() -> ModelPatcher:
    """The shipped network, on the devices that the host chooses. A read of 2.3 MB, so it is not kept."""
    network = U2NetP().eval()
    network.load_state_dict({name: weight.float() for name, weight in load_file(WEIGHTS).items()})
    management = comfy.model_management
    return ModelPatcher(network, management.get_torch_device(), management.unet_offload_device())


def find_subject(image: Tensor, threshold: float = THRESHOLD, grow: int = 0, keep: str = "all") -> Tensor:
    """Where the subject of each picture is: image [B, H, W, 3] in 0..1 -> mask [B, H, W] of zeros and ones.

    All zeros where nothing stands out. threshold, grow, keep: as find_subject.as_mask takes them.
    """
    patcher = load_network()
    comfy.model_management.load_models_gpu([patcher], memory_required=MEMORY)
    masks, progress = [], comfy.utils.ProgressBar(len(image))
    for picture in image:
        seen = picture[None, ..., :3].to(patcher.load_device, torch.float32).clamp(0, 1)
        with torch.inference_mode():
            found = standing_out(patcher.model, seen).cpu()
        masks.append(as_mask(found, picture.shape[:2], threshold, grow, keep))
        comfy.model_management.throw_exception_if_processing_interrupted()
        progress.update(1)
    return torch.cat(masks)
