"""Stable Diffusion's noise schedule, and v-prediction (Salimans & Ho, arXiv 2202.00512) on it."""

import torch
from torch import Tensor

TIMESTEPS = 1000
SNR_CAP = 4.0


def alphas_cumprod() -> Tensor:
    """alpha-bar_t [1000] of the scaled-linear schedule, betas 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).float()


def noised_and_target(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """x_t = a x0 + s eps and v = a eps - s x0, with a^2 = alpha-bar [B] and s^2 = 1 - a^2."""
    a, s = alpha_bar.sqrt()[:, None, None, None], (1 - alpha_bar).sqrt()[:, None, None, None]
    return a * x0 + s * noise, a * noise - s * x0


def loss_weight(alpha_bar: Tensor) -> Tensor:
    """[B]: 1, but if the SNR exceeds a cap, the v-loss weighs x0 as at the cap (min-SNR, arXiv 2303.09556).

    A v-error weighs x0-errors by SNR + 1; without this, nearly clean latents would dominate the training.
    """
    snr = alpha_bar / (1 - alpha_bar)
    return ((SNR_CAP + 1) / (snr + 1)).clamp(max=1)


def spread_timesteps(batch: int, generator: torch.Generator) -> Tensor:
    """[batch] timesteps, one from each equal part of the range: less noise between steps than independent draws."""
    u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    return (u * TIMESTEPS).long().clamp(max=TIMESTEPS - 1)
