"""The mini base's weights as the repository keeps them: 8 bits each, and expanded to what a host reads.

A matrix or kernel is stored as int8 with one scale for each output row; small tensors stay fp16. Expanded files lie
under `.lab/weights`, in a folder named by the packed file's digest, so that new weights are never taken for old ones.
"""

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lab.host import HOME

from .checkpoint import save_tensors

ROWS = ".rows"  # ends the name of a tensor's scales
SMALL = 2048  # numbers; below that a tensor stays as it is


def pack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    packed = {}
    for name, x in tensors.items():
        if not x.is_floating_point() or x.ndim < 2 or x.numel() < SMALL:
            packed[name] = x.half() if x.dtype == torch.float32 else x
            continue
        flat = x.float().flatten(1)
        scale = flat.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
        packed[name] = (flat / scale).round().to(torch.int8).view(x.shape)
        packed[name + ROWS] = scale[:, 0]
    return packed


def unpack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """fp16, as a checkpoint of the host's."""
    expanded = {}
    for name, x in tensors.items():
        if not name.endswith(ROWS):
            scale = tensors.get(name + ROWS)
            expanded[name] = x if scale is None else (x.flatten(1) * scale[:, None]).half().view(x.shape)
    return expanded


def unpacked(path: Path) -> Path:
    """The expanded file of a packed one, made where it is not there yet."""
    made = HOME / "weights" / hashlib.sha256(path.read_bytes()).hexdigest()[:12] / path.name
    if not made.exists():
        with safe_open(str(path), "pt") as file:
            told = file.metadata()
        save_tensors(made, unpack(load_file(path)), told)
    return made
