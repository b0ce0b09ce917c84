"""Connected areas, against a plain flood."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dreamtuner_core.picture.areas import connected, holes, largest
from dreamtuner_core.picture.find_subject import as_mask


def flooded(inside: Tensor) -> int:
    """How many areas there are, by hand."""
    left = {tuple(pixel) for pixel in inside.nonzero().tolist()}
    count = 0
    while left:
        count += 1
        edge = [left.pop()]
        while edge:
            y, x = edge.pop()
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    edge.append(near)
    return count


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_areas_are_those_of_a_flood(share: float) -> None:
    inside = torch.rand(40, 57, generator=torch.Generator().manual_seed(int(share * 10))) < share
    labels = connected(inside)
    assert labels.max() == flooded(inside)
    assert torch.equal(labels > 0, inside)
    for label in range(1, int(labels.max()) + 1):
        assert flooded(labels == label) == 1


def test_a_snake_is_one_area() -> None:
    inside = torch.zeros(41, 60, dtype=torch.bool)
    inside[::2] = True
    inside[1::4, -1] = True
    inside[3::4, 0] = True
    assert connected(inside).max() == 1


@pytest.mark.parametrize("scale", [1, 7])
def test_the_largest_area_is_left_with_its_soft_edge(scale: int) -> None:
    mask = torch.zeros(80 * scale, 90 * scale)
    mask[10 * scale : 40 * scale, 10 * scale : 40 * scale] = 1.0
    edged = mask.clone()
    edged[10 * scale - 1, 10 * scale : 40 * scale] = 0.3
    crowded = edged.clone()
    crowded[60 * scale : 70 * scale, 60 * scale : 80 * scale] = 1.0
    assert torch.equal(largest(crowded), edged)
    assert torch.equal(largest(mask * 0), mask * 0)


def test_small_holes_are_found_and_large_ones_and_bays_are_not() -> None:
    mask = torch.ones(60, 80, dtype=torch.bool)
    mask[5:9, 5:9] = mask[20:40, 20:60] = mask[50:, 70:74] = False  # a small hole, a large one, a bay
    found = holes(mask, 0.1)
    assert found.nonzero().tolist() == [[y, x] for y in range(5, 9) for x in range(5, 9)]
    assert torch.equal(holes(mask, 1.0), ~mask & (torch.arange(60) < 45)[:, None])
    assert not holes(~mask[20:40, 20:60], 1.0).any(), "all of the picture is subject"
    assert not holes(torch.zeros(9, 9, dtype=torch.bool), 1.0).any(), "nothing is"


def test_a_subject_is_whole_though_its_middle_stands_out_less() -> None:
    found = torch.zeros(2, 1, 320, 320)
    found[:, :, 100:220, 100:220] = 0.9
    found[0, :, 130:180, 130:180] = found[1, :, 105:215, 105:215] = 0.1  # a part, and all but a thin rim
    masks = as_mask(found, (640, 480))
    assert masks[0].sum() == masks.shape[1] * masks.shape[2] * (120 / 320) ** 2
    assert masks[1].mean() < 0.05, "a ring stays a ring"
