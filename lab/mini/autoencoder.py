"""Autoencoder in TAESD's layout (f8, 16 latent channels), trained narrow and exported at the full width.

Source: madebyollin/taesd, as in the host's comfy/taesd/taesd.py. The layout has 64 channels throughout;
here each resolution has its own smaller width, and zero padding to 64 leaves the output unchanged:
padded channels are zero after every convolution, ReLU and identity skip.
"""

import torch
from torch import Tensor, nn

from .config import LATENT_CHANNELS
from .unet import upsampled

FULL_WIDTH = 64


class Clamp(nn.Module):
    """Limits latents smoothly to -3..3, any shape."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z / 3) * 3


class Upsample(nn.Module):
    """[B, C, h, w] -> [B, C, 2h, 2w]."""

    def forward(self, x: Tensor) -> Tensor:
        return upsampled(x)


class Block(nn.Module):
    """[B, width, h, w] -> the same shape."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))
        self.fuse = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(self.conv(x) + x)


def conv(n_in: int, n_out: int, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, **kwargs)


def encoder(widths: tuple[int, int, int, int]) -> nn.Sequential:
    """[B, 3, 8h, 8w] in 0..1 -> latents [B, 16, h, w] of about unit variance. Widths: finest level first."""
    w1, w2, w4, w8 = widths
    return nn.Sequential(
        conv(3, w1),
        Block(w1),
        conv(w1, w2, stride=2, bias=False),
        Block(w2),
        Block(w2),
        Block(w2),
        conv(w2, w4, stride=2, bias=False),
        Block(w4),
        Block(w4),
        Block(w4),
        conv(w4, w8, stride=2, bias=False),
        Block(w8),
        Block(w8),
        Block(w8),
        conv(w8, LATENT_CHANNELS),
    )


def decoder(widths: tuple[int, int, int, int]) -> nn.Sequential:
    """Latents [B, 16, h, w] -> [B, 3, 8h, 8w] in 0..1."""
    w1, w2, w4, w8 = widths
    return nn.Sequential(
        Clamp(),
        conv(LATENT_CHANNELS, w8),
        nn.ReLU(),
        Block(w8),
        Block(w8),
        Block(w8),
        Upsample(),
        conv(w8, w4, bias=False),
        Block(w4),
        Block(w4),
        Block(w4),
        Upsample(),
        conv(w4, w2, bias=False),
        Block(w2),
        Block(w2),
        Block(w2),
        Upsample(),
        conv(w2, w1, bias=False),
        Block(w1),
        conv(w1, 3),
    )


class Autoencoder(nn.Module):
    def __init__(self, widths: tuple[int, int, int, int]):
        super().__init__()
        self.taesd_encoder = encoder(widths)
        self.taesd_decoder = decoder(widths)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for block in (layer for layer in self.modules() if isinstance(layer, Block)):
            block.conv[4].weight.data.mul_(0.1)  # near identity at the start

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Latents, and the pictures restored from them and the noise [B, 16, H/8, W/8] that is added."""
        latents = self.encode(pictures)
        return latents, self.decode(latents + noise)

    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, 16, H/8, W/8]."""
        return self.taesd_encoder(pictures)

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 16, h, w] -> [B, 3, 8h, 8w] in 0..1 (not clamped)."""
        return self.taesd_decoder(latents)


def pad_to_full_width(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same autoencoder with every inner width zero-padded to 64; the picture and latent sides stay."""
    template = Autoencoder((FULL_WIDTH,) * 4).state_dict()
    padded = {}
    for key, weight in state.items():
        padded[key] = torch.zeros(template[key].shape, dtype=weight.dtype)
        padded[key][tuple(slice(extent) for extent in weight.shape)] = weight
    return padded
