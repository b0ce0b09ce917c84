"""What a token sees of a mask: whole pixels, in the windows of the U-Net's own down-sampling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dreamtuner_core.subject import to_grid


def mask(height: int, width: int) -> Tensor:
    return torch.rand(1, height, width, generator=torch.Generator().manual_seed(height), dtype=torch.float64).float()


@pytest.mark.parametrize("grid", [(6, 5), (11, 8), (13, 9), (3, 3)])
@pytest.mark.parametrize("size", [(88, 64), (104, 72), (100, 90)])
def test_a_token_is_the_mean_of_the_pixels_that_it_touches(size: tuple[int, int], grid: tuple[int, int]) -> None:
    (height, width), (rows, columns), seen = size, grid, mask(*size)

    def window(i: int, side: int, tokens: int) -> slice:
        return slice(math.floor(i * side / tokens), math.ceil((i + 1) * side / tokens))

    wanted = [
        seen[0, window(y, height, rows), window(x, width, columns)].double().mean()
        for y in range(rows)
        for x in range(columns)
    ]
    torch.testing.assert_close(to_grid(seen, rows, columns).double(), torch.stack(wanted), atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", [5, 11, 13])
def test_on_an_odd_side_the_windows_are_the_convolutions_fields(side: int) -> None:
    """Kernel 3, stride 2, padding 1: the mean of what the kernel covers of the grid."""
    seen, ones = mask(side, side), torch.ones(1, 1, side, side)
    field = torch.ones(1, 1, 3, 3)
    wanted = F.conv2d(seen[None], field, stride=2, padding=1) / F.conv2d(ones, field, stride=2, padding=1)
    half = (side + 1) // 2
    torch.testing.assert_close(to_grid(seen, half, half), wanted.flatten())


def test_where_sides_divide_it_is_the_exact_area() -> None:
    seen = mask(96, 64)
    wanted = seen.reshape(12, 8, 8, 8).mean((1, 3)).flatten()
    torch.testing.assert_close(to_grid(seen, 12, 8), wanted)
