"""Muon: momentum, orthogonalised, for the weight matrices and convolution kernels of hidden layers.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), Newton-Schulz
coefficients as there; the step is scaled so that its size matches AdamW's (Liu et al., arXiv 2502.16982),
so both use the same learning rate. AdamW trains all other parameters (`split_parameters`).
If several workers train the same weights, each orthogonalises its share, and the results are added up.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly: [..., n, m] -> [..., n, m] bf16 with singular values near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16()
    for step in range(steps):
        gram = x @ x.mT
        if step == 0:  # of Frobenius norm 1, from here on
            squared = gram.diagonal(dim1=-2, dim2=-1).float().sum(-1)[..., None, None] + 1e-14
            x, gram = x * squared.rsqrt().bfloat16(), (gram / squared).bfloat16()
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        x = polynomial @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """One step. Matrices of one shape are orthogonalised together: many small products are slow on a CPU."""
        rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[nn.Parameter]] = {}
            for p in group["params"]:
                alike.setdefault((p.shape[0], p[0].numel()), []).append(p)
            updates = [
                self._update(params, group["momentum"], mine=number % workers == rank)
                for number, params in enumerate(alike.values())
            ]
            for shape, params, update in zip(alike, alike.values(), updates):
                if workers > 1:
                    dist.all_reduce(update)
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                for p, one in zip(params, update):
                    p.add_(one.view(p.shape), alpha=-0.2 * max(shape) ** 0.5 * group["lr"])

    def _update(self, params: list[nn.Parameter], momentum: float, mine: bool) -> Tensor:
        """[params, out, in * 3 * 3] bf16; zeros where another worker orthogonalises them."""
        buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in params]
        gradients = [p.grad for p in params]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        if not mine:
            return torch.zeros(len(params), len(params[0]), params[0][0].numel(), dtype=torch.bfloat16)
        nesterov = (g.lerp(buffer, momentum).flatten(1).bfloat16() for g, buffer in zip(gradients, buffers))
        return orthogonalise(torch.stack(list(nesterov)))


def split_parameters(module: nn.Module, outer: tuple[str, ...]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(for Muon, for AdamW): matrices and kernels are Muon's, unless they are embeddings or named in `outer`."""
    muon, adamw = [], []
    for name, p in module.named_parameters():
        if not p.requires_grad:
            continue
        (muon if p.ndim >= 2 and "embedding" not in name and not name.startswith(outer) else adamw).append(p)
    return muon, adamw
