"""Muon: momentum, orthogonalised, for the weight matrices and convolution kernels of hidden layers.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), Newton-Schulz
coefficients as there; the step is scaled so that its size matches AdamW's (Liu et al., arXiv 2502.16982),
hence the same learning rate serves both. Everything else is left to AdamW (`split_parameters`).
Where several workers train the same weights, each orthogonalises its share and they add up the results.
"""

import torch
import torch.distributed as dist
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
            params, workers = group["params"], dist.get_world_size() if dist.is_initialized() else 1
            updates = torch.zeros(sum(p.numel() for p in params), dtype=torch.bfloat16, device=params[0].device)
            for i, (p, update) in enumerate(zip(params, updates.split([p.numel() for p in params]))):
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                if i % workers == (dist.get_rank() if workers > 1 else 0):
                    nesterov = p.grad.lerp(buffer, group["momentum"]).flatten(1)  # [out, in * 3 * 3]
                    update.view_as(nesterov).copy_(orthogonalise(nesterov) * (0.2 * max(nesterov.shape) ** 0.5))
            if workers > 1:
                dist.all_reduce(updates)
            for p, update in zip(params, updates.split([p.numel() for p in params])):
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update.view(p.shape))


def split_parameters(module: nn.Module, outer: tuple[str, ...]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(for Muon, for AdamW): matrices and kernels are Muon's, unless they are embeddings or named in `outer`."""
    muon, adamw = [], []
    for name, p in module.named_parameters():
        (muon if p.ndim >= 2 and "embedding" not in name and not name.startswith(outer) else adamw).append(p)
    return muon, adamw
