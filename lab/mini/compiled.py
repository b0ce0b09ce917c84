"""Compiling a module before it is trained: only where its gradients stay what they are."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

MOST_ERROR = 0.1  # of compiled gradients, as a share of their size; bf16 itself makes 0.02 to 0.03
ZERO_NOISE = 0.05  # in the place of zeros, while gradients are compared

Batch = TypeVar("Batch")


def compile_checked(learns: nn.Module, loss: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> None:
    """Compile what learns, and take it back where that fails or the gradients of a batch are then others.

    torch 2.13 compiles the backward pass of F.interpolate under bf16 autocast on a CPU to zeros: the loss falls all the
    same for a while, and a run is lost. The last layers start at zeros, behind which every gradient is zero anyhow: so
    they are noise as long as gradients are compared. batches: one of each shape, since each is compiled on its own.
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
    except Exception as error:  # a compiler raises what it likes: there is none, it has no room, it has a bug
        wrong = f"compiling failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    if wrong:
        learns._compiled_call_impl = None
        print(f"{wrong}: this run goes on uncompiled", flush=True)
    with torch.no_grad():
        for p in zeros:
            p.zero_()
