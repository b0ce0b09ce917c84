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

TOLD_SIDE = 128


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


def told(image: Tensor, **inputs: Any) -> tuple[Subject, list[str]]:
    """The subject, and the keys of what is said under the preview."""
    inputs = {"vae": None, "resolution": TOLD_SIDE} | inputs
    output = EncodeSubjectImage.execute(image, **inputs | {"vae": NoVae()})
    return output.args[0], output.ui["dreamtuner_notes"]


class NoVae:
    def encode(self, pixels: Tensor) -> Tensor:
        return torch.zeros(1, 4, pixels.shape[1] // 8, pixels.shape[2] // 8)


def cut_out(inside: Tensor) -> tuple[Tensor, Tensor]:
    """A picture of a shaded thing where inside [H, W] is, and the mask of it as LoadImage gives it."""
    height, width = inside.shape
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    thing = torch.stack([0.2 + 0.7 * x, 0.95 - 0.8 * y, 0.5 + 0.4 * torch.sin(40 * x).sign()], dim=-1)
    return (thing * inside[..., None])[None], 1 - inside[None].float()


def bust(side: int = 300) -> Tensor:
    """Head and shoulders that fill the bottom."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    head = (y - 90) ** 2 + (x - 150) ** 2 < 70**2
    return head | ((y > 170) & ((x - 150).abs() < 60 + (y - 170)))
