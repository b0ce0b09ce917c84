"""The mini base's weights of 8 bits: a matrix or kernel is int8 with one scale for each row; small tensors are fp16."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from .checkpoint import require, save_tensors
from .shipped import ENCODER, FOLDER, NAMES, PACKED

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


def pack_all(source: Path, target: Path = PACKED) -> None:
    """The trained files in `source`, as the repository keeps them."""
    for name in NAMES:
        require(source / name, "encoder" if name == ENCODER else "export")
        save_tensors(target / name, pack(load_file(source / name)), metadata(source / name))
        print(f"wrote {target / name} ({(target / name).stat().st_size / 2**20:.1f} MiB)")


def unpack_all(source: Path = PACKED, target: Path = FOLDER) -> None:
    """Expand what is not expanded yet."""
    for path in (source / name for name in NAMES):
        if path.exists() and not (target / path.name).exists():
            save_tensors(target / path.name, unpack(load_file(path)), metadata(path))


def metadata(path: Path) -> dict[str, str] | None:
    with safe_open(str(path), "pt") as file:
        return file.metadata()
