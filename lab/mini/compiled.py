"""Compiling a module before it is trained, only if its gradients do not change."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

MOST_ERROR = 0.1  # of compiled gradients, as a share of their size; bf16 itself makes 0.02 to 0.03
ZERO_NOISE = 0.05  # instead of zeros, while gradients are compared

Batch = TypeVar("Batch")


def compile_checked(learns: nn.Module, loss: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> None:
    """Compile the trained module, and undo it if that fails or changes the gradients of a batch.

    torch 2.13 compiles the backward pass of F.interpolate under bf16 autocast on a CPU to zeros: the loss still falls
    for a while, but the run is lost. The last layers start at zeros, which makes every gradient before them zero: so
    they are noise while gradients are compared. batches: one of each shape, because each shape is compiled separately.
    """
    learned = [p for p in learns.parameters() if p.requires_grad]
    wrong, zeros = "", [p for p in learned if not p.any()]

    def gradients(batch: Batch) -> Tensor:
        found = torch.autograd.grad(loss(batch), learned, materialize_grads=True)
        return torch.cat([g.flatten() for g in found]).float()

    with torch.no_grad():
        for p in zeros:
            p.normal_(std=ZERO_NOISE)
    plain = [gradients(batch) for batch in batches]
    try:
        learns.compile(dynamic=False)
        off = torch.stack([(gradients(batch) - g).norm() / g.norm() for batch, g in zip(batches, plain)]).max()
        if not off < MOST_ERROR:
            wrong = f"compiled gradients are wrong (by {off:.2f} of their size)"
    except Exception as error:  # a compiler may raise anything: it is missing, out of memory, has a bug
        wrong = f"compiling failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    if wrong:
        learns._compiled_call_impl = None
        print(f"{wrong}: this run is not compiled", flush=True)
    with torch.no_grad():
        for p in zeros:
            p.zero_()
