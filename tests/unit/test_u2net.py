"""U2-NetP in torch against the published network's own answers, kept by lab/u2netp.py."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dreamtuner_core.picture.u2net import SIDE, U2NetP, normalised
from lab.u2netp import ANSWERS, STEP, WEIGHTS, picture


@cache
def ours() -> Tensor:
    network = U2NetP()
    network.load_state_dict({name: weight.float() for name, weight in load_file(WEIGHTS).items()})
    with torch.inference_mode():
        return network(normalised(picture()))


def theirs(weights: str) -> Tensor:
    return load_file(ANSWERS)[weights]


def test_it_agrees_with_the_original_on_the_same_weights() -> None:
    assert ours().shape == (1, 1, SIDE, SIDE)
    assert (ours()[..., ::STEP, ::STEP] - theirs("rounded")).abs().max() < 1e-4


def test_weights_in_half_precision_change_no_mask() -> None:
    """Some 1e-4 in the mean, more at the steepest edges: as rounding the original's own weights does."""
    found, published = ours()[..., ::STEP, ::STEP], theirs("published")
    assert (found - published).abs().mean() < 1.5e-4
    assert torch.equal(found > 0.5, published > 0.5)


def test_the_answers_can_tell_networks_apart() -> None:
    assert theirs("published").max() > 0.9
    assert theirs("published").min() < 0.1
    with torch.inference_mode():
        assert (ours() - U2NetP()(normalised(picture()))).abs().max() > 0.1


def test_the_file_is_small_and_in_half_precision() -> None:
    assert Path(WEIGHTS).stat().st_size < 2.4e6
    assert {weight.dtype for weight in load_file(WEIGHTS).values()} == {torch.float16}


@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (1, 1), (9, 500), (1000, 3)])
def test_any_size_comes_to_the_networks(height: int, width: int) -> None:
    pixels = normalised(torch.full((2, height, width, 3), 0.5))
    assert pixels.shape == (2, 3, SIDE, SIDE)
    assert pixels.amin((2, 3)).sub(pixels.amax((2, 3))).abs().max() < 1e-4
    assert pixels[0, 0, 0, 0] == pytest.approx((0.5 - 0.485) / 0.229, abs=1e-4)
