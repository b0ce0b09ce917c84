"""Pictures, masks and the host's smallest VAE, and Encode Subject Image on them."""

from __future__ import annotations

from functools import cache
from typing import Any

import comfy.sd
import torch
from comfy.taesd.taesd import TAESD
from dreamtuner_pack.dreamtuner_core.subject import Subject
from dreamtuner_pack.nodes.subject import EncodeSubjectImage
from torch import Tensor

RESOLUTION = 64


@cache
def vae(channels: int = 4) -> comfy.sd.VAE:
    """The host's smallest VAE, seeded random weights."""
    weights, draw = TAESD(latent_channels=channels).state_dict(), torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if not name.startswith("vae_"):
            weights[name] = torch.randn(weight.shape, generator=draw) * weight[0].numel() ** -0.5
    return comfy.sd.VAE(sd=weights)


def encode(image: Tensor, **inputs: Any) -> tuple[Subject, Tensor]:
    return EncodeSubjectImage.execute(image, **{"vae": vae(), "resolution": RESOLUTION} | inputs).args


def picture(height: int = 48, width: int = 40, channels: int = 3) -> Tensor:
    return torch.rand(1, height, width, channels, generator=torch.Generator().manual_seed(0))


def mask(height: int = 48, width: int = 40) -> Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : -(height // 4) or None, width // 4 : -(width // 4) or None] = 1.0
    return mask


def disc(height: int = 200, width: int = 300, centre: tuple[int, int] = (110, 120), radius: int = 60) -> Tensor:
    """Where a ball is: [height, width] bool."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


def ball(where: Tensor, colour: tuple[float, float, float] = (0.9, 0.2, 0.1)) -> Tensor:
    """[1, H, W, 3]: a plain ball before a plain ground."""
    return torch.where(where[..., None], torch.tensor(colour), torch.tensor([0.6, 0.75, 0.9]))[None]


def overlap(found: Tensor, true: Tensor) -> float:
    return float((found.bool() & true).sum() / (found.bool() | true).sum())
