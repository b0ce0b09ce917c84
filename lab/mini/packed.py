"""The mini base's weights as stored in the repository: a matrix or kernel is int8 with one scale for each row.

Small tensors are fp16. Zeros at the end of a tensor (the autoencoder's padding to its full width) are left out. The
ControlNet starts as a copy of the U-Net's encoder, so only the change is stored, in 4 bits.
"""

from pathlib import Path

import torch
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from .checkpoint import require, save_tensors
from .shipped import BASE, CONTROL, ENCODER, FOLDER, NAMES, PACKED

ROWS, SHAPE, CHANGE = ".rows", ".shape", ".change"  # suffixes of a tensor's scales, full shape, and 4-bit change
SMALL = 2048  # numbers; a smaller tensor stays as it is
UNET = "model.diffusion_model."

Tensors = dict[str, Tensor]


def pack(tensors: Tensors, copied: Tensors | None = None) -> Tensors:
    """The tensors in packed form. copied: those that some of them started from, by name."""
    packed: Tensors = {}
    for name, whole in tensors.items():
        start = (copied or {}).get(name)
        if not whole.is_floating_point() or whole.ndim < 2 or whole.numel() < SMALL:
            packed[name] = whole.half() if whole.dtype == torch.float32 else whole
        elif start is not None and start.shape == whole.shape:
            numbers, packed[name + ROWS] = quantised(whole.float() - start.float(), 7)
            high, low = rearrange((numbers + 8).to(torch.uint8).flatten(), "(n two) -> two n", two=2)
            packed[name + CHANGE] = 16 * high + low
        else:
            x = without_padding(whole.float())
            packed[name], packed[name + ROWS] = quantised(x, 127)
            if x.shape != whole.shape:
                packed[name + SHAPE] = torch.tensor(whole.shape)
    return packed


def unpack(tensors: Tensors, copied: Tensors | None = None) -> Tensors:
    """The tensors in fp16, as in a checkpoint of the host. copied: as for `pack`."""
    expanded: Tensors = {}
    for name, x in tensors.items():
        if name.endswith((ROWS, SHAPE)):
            continue
        if name.endswith(CHANGE):
            name = name.removesuffix(CHANGE)
            start = (copied or {})[name]
            numbers = torch.stack([x // 16, x % 16], dim=1).float().view(start.shape) - 8
            expanded[name] = (start.float() + scaled(numbers, tensors[name + ROWS])).half()
            continue
        if name + ROWS in tensors:
            x = scaled(x, tensors[name + ROWS]).half()
        if name + SHAPE in tensors:
            whole = x.new_zeros(tensors[name + SHAPE].tolist())
            whole[tuple(map(slice, x.shape))] = x
            x = whole
        expanded[name] = x
    return expanded


def quantised(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Integers in -most..most that approximate x [N, ...], and the scale of each row, [N]."""
    scale = x.flatten(1).abs().amax(1).clamp(min=1e-8) / most
    return (x.flatten(1) / scale[:, None]).round().to(torch.int8).view(x.shape), scale


def scaled(numbers: Tensor, scale: Tensor) -> Tensor:
    """The inverse of `quantised`: numbers [N, ...] times scale [N]."""
    return (numbers.flatten(1) * scale[:, None]).view(numbers.shape)


def without_padding(x: Tensor) -> Tensor:
    """The smallest corner of x [N, M, ...] with all its nonzero numbers, at least one row and column."""
    filled = [x.abs().movedim(dim, 0).flatten(1).amax(1).nonzero().flatten() for dim in range(2)]
    rows, columns = (int(found[-1]) + 1 if len(found) else 1 for found in filled)
    return x[:rows, :columns].contiguous()


def unet_of(base: Tensors) -> Tensors:
    """The U-Net's tensors of a checkpoint, by the U-Net's own names."""
    return {name.removeprefix(UNET): x for name, x in base.items() if name.startswith(UNET)}


def pack_all(source: Path, target: Path = PACKED) -> None:
    """Pack the trained files in `source` into the repository's form."""
    unet: Tensors = {}
    for name in NAMES:
        require(source / name, "encoder" if name == ENCODER else "export")
        packed = pack(load_file(source / name), unet if name == CONTROL else None)
        save_tensors(target / name, packed, metadata(source / name))
        print(f"wrote {target / name} ({(target / name).stat().st_size / 2**20:.1f} MiB)")
        if name == BASE:
            unet = unet_of(unpack(packed))


def unpack_all(source: Path = PACKED, target: Path = FOLDER) -> None:
    """Expand the files that are not expanded yet."""
    for path in (source / name for name in NAMES):
        if path.exists() and not (target / path.name).exists():
            unet = unet_of(load_file(target / BASE)) if path.name == CONTROL else None
            save_tensors(target / path.name, unpack(load_file(path), unet), metadata(path))


def metadata(path: Path) -> dict[str, str] | None:
    with safe_open(str(path), "pt") as file:
        return file.metadata()
