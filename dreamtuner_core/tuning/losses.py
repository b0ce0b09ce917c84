"""The loss, in the model's own parametrisation.

With x = x0 + sigma e (the host's noise levels), a = 1 / sqrt(1 + sigma^2) and SNR = 1 / sigma^2, the network predicts

    eps:  e                    v:  a e - a sigma x0        (Salimans and Ho, arXiv 2202.00512)

and a step minimises  L(reference) + prior_weight * L(regular)  (DreamBooth, arXiv 2208.12242, Eq. 2), each a mean
squared error, optionally weighted with min-SNR (Hang et al., arXiv 2303.09556) and masked to the subject.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS, V = "eps", "v"


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1], to broadcast with [B, C, h, w]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def target(parametrisation: str, latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The network's target [B, C, h, w]. latent, noise: [B, C, h, w]; sigma: [B]. Raises ValueError unless eps or v."""
    if parametrisation == EPS:
        return noise
    if parametrisation == V:
        sigma = per_row(sigma, latent)
        return (noise - sigma * latent) / torch.sqrt(1 + sigma**2)
    raise ValueError(f"expected a model that predicts {EPS} or {V}, but this one predicts {parametrisation}.")


def min_snr(parametrisation: str, sigma: Tensor, gamma: float) -> Tensor:
    """Weights of the rows' squared errors [B]: min(SNR, gamma) / SNR for eps, / (SNR + 1) for v. gamma 0: ones.

    In both parametrisations this weights the error of x0 by min(SNR, gamma).
    """
    if gamma == 0:
        return torch.ones_like(sigma)
    snr = 1 / sigma**2
    return torch.clamp(snr, max=gamma) / (snr if parametrisation == EPS else snr + 1)


def row_losses(predicted: Tensor, wanted: Tensor, counted: Tensor | None) -> Tensor:
    """Mean squared error of each row: [B]. predicted, wanted: [B, C, h, w].

    counted: [1, h, w] in 0..1, a weight for row 0; None is 1 everywhere.
    """
    square = (predicted - wanted) ** 2  # [B, C, h, w]
    losses = square.mean((1, 2, 3))
    if counted is None:
        return losses
    reference = (square[0] * counted).sum() / (counted.sum() * square.shape[1]).clamp(min=1e-6)
    return torch.cat([reference[None], losses[1:]])


def pair_loss(losses: Tensor, weights: Tensor, prior_weight: float) -> Tensor:
    """L(reference) + prior_weight * L(regular): a scalar. losses, weights: [2], or [1] without a regular picture."""
    weighted = losses * weights
    return weighted[0] + prior_weight * weighted[1:].sum()
