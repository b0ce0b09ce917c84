"""Muon: momentum, orthogonalised, for the weight matrices and convolution kernels of hidden layers.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), Newton-Schulz
coefficients as there; the step is scaled so that its size matches AdamW's (Liu et al., arXiv 2502.16982),
hence the same learning rate serves both. Everything else is left to AdamW (`split_parameters`).
"""
import torch
from torch import Tensor, nn


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix, roughly: [n, m] -> [n, m] with singular values near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]).flatten(1)  # Nesterov; [out, in * 3 * 3]
                update = orthogonalise(update).to(p.dtype) * (0.2 * max(update.shape) ** 0.5)
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view_as(p), alpha=-group["lr"])


def split_parameters(module: nn.Module, outer: tuple[str, ...]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(for Muon, for AdamW): matrices and kernels are Muon's, unless they are embeddings or named in `outer`."""
    muon, adamw = [], []
    for name, p in module.named_parameters():
        (muon if p.ndim >= 2 and "embedding" not in name and not name.startswith(outer) else adamw).append(p)
    return muon, adamw
