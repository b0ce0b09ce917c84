"""U2-NetP, salient object detection (Qin et al., "U2-Net", Pattern Recognition 2020, arXiv 2005.09007).

The small one of the paper's two networks: every stage 64 channels wide outside and 16 inside. Batch normalisation is
folded into the convolutions. Submodules stand in the order in which they run, as the converted file's names do.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..files import load_weights, read_whole
from .framing import resized

WIDTH = 64  # channels between stages
INSIDE = 16  # channels within one
SIDE = 320  # pixels of the square that the network was trained on
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Conv(nn.Conv2d):
    """3x3 convolution and ReLU: [B, inputs, H, W] -> [B, outputs, H, W]."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1) -> None:
        super().__init__(inputs, outputs, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class ResidualU(nn.Module):
    """RSU-L (figure 2): a small U-Net with a residual connection. [B, inputs, H, W] -> [B, WIDTH, H, W]."""

    def __init__(self, inputs: int, levels: int) -> None:
        super().__init__()
        self.enter = Conv(inputs, WIDTH)
        self.down = nn.ModuleList(Conv(WIDTH if i == 0 else INSIDE, INSIDE) for i in range(levels - 1))
        self.bottom = Conv(INSIDE, INSIDE, dilation=2)
        self.up = nn.ModuleList(Conv(2 * INSIDE, WIDTH if i == 0 else INSIDE) for i in reversed(range(levels - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = entered = self.enter(x)
        kept: list[Tensor] = []
        for conv in self.down:
            x = conv(half(kept[-1]) if kept else x)
            kept.append(x)
        x = self.bottom(x)
        for conv in self.up:
            x = conv(torch.cat([like(x, kept[-1]), kept.pop()], dim=1))
        return x + entered


class DilatedU(nn.Module):
    """RSU-4F: ResidualU with dilations instead of downsampling. [B, inputs, H, W] -> [B, WIDTH, H, W]."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.enter = Conv(inputs, WIDTH)
        self.down = nn.ModuleList(Conv(WIDTH if d == 1 else INSIDE, INSIDE, d) for d in (1, 2, 4))
        self.bottom = Conv(INSIDE, INSIDE, dilation=8)
        self.up = nn.ModuleList(Conv(2 * INSIDE, WIDTH if d == 1 else INSIDE, d) for d in (4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = entered = self.enter(x)
        kept: list[Tensor] = []
        for conv in self.down:
            x = conv(x)
            kept.append(x)
        x = self.bottom(x)
        for conv in self.up:
            x = conv(torch.cat([x, kept.pop()], dim=1))
        return x + entered


class U2NetP(nn.Module):
    """[B, 3, SIDE, SIDE], normalised by MEAN and DEVIATION -> [B, 1, SIDE, SIDE] in 0..1: how far each pixel stands
    out."""

    def __init__(self) -> None:
        super().__init__()
        stages = [ResidualU(3 if levels == 7 else WIDTH, levels) for levels in (7, 6, 5, 4)]
        self.encoder = nn.ModuleList([*stages, DilatedU(WIDTH), DilatedU(WIDTH)])
        self.decoder = nn.ModuleList([DilatedU(2 * WIDTH), *(ResidualU(2 * WIDTH, levels) for levels in (4, 5, 6, 7))])
        self.sides = nn.ModuleList(nn.Conv2d(WIDTH, 1, 3, padding=1) for _ in range(6))  # finest first
        self.fuse = nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for stage in self.encoder:
            kept.append(stage(half(kept[-1]) if kept else x))
        x = kept.pop()
        coarse_first = [x]
        for stage in self.decoder:
            x = stage(torch.cat([like(x, kept[-1]), kept.pop()], dim=1))
            coarse_first.append(x)
        first, *rest = [side(x) for side, x in zip(self.sides, reversed(coarse_first))]
        return torch.sigmoid(self.fuse(torch.cat([first, *(like(x, first) for x in rest)], dim=1)))


def normalised(image: Tensor) -> Tensor:
    """The network's input: image [B, H, W, 3] in 0..1 -> [B, 3, SIDE, SIDE]."""
    pixels = (image if image.shape[1:3] == (SIDE, SIDE) else resized(image, SIDE, SIDE)).movedim(-1, 1)
    mean, deviation = (torch.tensor(x, device=image.device)[:, None, None] for x in (MEAN, DEVIATION))
    return (pixels - mean) / deviation


def half(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H/2, W/2], rounded up."""
    return F.max_pool2d(x, 2, ceil_mode=True)


def like(x: Tensor, other: Tensor) -> Tensor:
    """Resize x [B, C, h, w] to the height and width of the other."""
    return F.interpolate(x, other.shape[2:], mode="bilinear", align_corners=False)


def read_network(path: Path) -> U2NetP:
    """The network with the weights in that file. Raises ValueError, in one sentence, for any other file."""
    with torch.device("meta"):
        network = U2NetP()
    try:
        load_weights(network, read_whole(path)[0])
    except ValueError as error:
        raise ValueError(f"'{path.name}' {error}; it comes with the pack: install DreamTuner again.") from error
    return network
