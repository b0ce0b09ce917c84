"""The count of a tuning's memory: its bookkeeping on a step small enough to be counted by hand."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lab.tuning_memory import Live

SIDE, MATRIX = 1024, 4 * 1024 * 1024  # bytes of one


def test_bytes_count_from_when_they_are_made_until_nothing_needs_them() -> None:
    with FakeTensorMode(), Live() as live:
        a, w = torch.zeros(SIDE, SIDE), torch.nn.Parameter(torch.zeros(SIDE, SIDE))
        assert live.now == 2 * MATRIX
        product = a @ w
        assert live.now == 3 * MATRIX
        squashed = torch.sigmoid(product)
        assert live.now == 4 * MATRIX
        loss = squashed.flatten().sum()  # a view is no more bytes
        del product, squashed
        assert live.now // MATRIX == 3, "the way back needs what the sigmoid gave, and not what it was given"
        loss.backward()
        assert live.now // MATRIX == 3, "the gradient has come and that has gone"
        assert live.peak // MATRIX == 4
