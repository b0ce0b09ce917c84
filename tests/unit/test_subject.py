"""Framing, masks and grids: what one reference picture becomes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dreamtuner_core.picture.preview import EMPTY, OUTLINE, preview
from dreamtuner_core.subject import MARGIN, Subject, frame, subject_mask, to_grid, token_grid

RESOLUTION = 128


def picture_of(height: int, width: int, box: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """A red subject in a box (top, bottom, left, right) on a green ground, and its mask."""
    top, bottom, left, right = box
    image, mask = torch.zeros(1, height, width, 3), torch.zeros(1, height, width)
    image[..., 1] = 1.0
    image[:, top:bottom, left:right] = torch.tensor([1.0, 0.0, 0.0])
    mask[:, top:bottom, left:right] = 1.0
    return image, mask


SUBJECTS = {
    "in the middle": (100, 100, (30, 70, 30, 70)),
    "the whole picture": (64, 64, (0, 64, 0, 64)),
    "in a corner": (200, 120, (0, 50, 0, 40)),
    "at the other corner": (200, 120, (150, 200, 80, 120)),
    "tall": (300, 40, (10, 290, 5, 35)),
    "wide": (40, 300, (5, 35, 10, 290)),
    "small in a large picture": (900, 1200, (400, 430, 700, 725)),
    "one row": (1, 90, (0, 1, 20, 60)),
    "one column": (90, 1, (20, 60, 0, 1)),
    "one pixel": (50, 50, (49, 50, 0, 1)),
    "a thin line": (100, 100, (50, 51, 0, 100)),
}


@pytest.mark.parametrize(("height", "width", "box"), SUBJECTS.values(), ids=SUBJECTS.keys())
def test_the_subject_is_neither_cut_nor_tiny_and_stands_on_white(
    height: int, width: int, box: tuple[int, int, int, int]
) -> None:
    framed, mask = frame(*picture_of(height, width, box), RESOLUTION)
    assert framed.shape == (1, RESOLUTION, RESOLUTION, 3)
    assert mask is not None
    assert mask.shape == (1, RESOLUTION, RESOLUTION)
    assert framed.min() >= 0
    assert framed.max() <= 1

    tall, wide = box[1] - box[0], box[3] - box[2]
    side = round(max(tall, wide) * (1 + 2 * MARGIN))
    scale = RESOLUTION / side
    assert mask.sum() == pytest.approx(tall * wide * scale**2, rel=0.15)  # nothing is cut off
    outline = torch.nonzero(mask[0] > 0.4)
    extent = (outline.amax(0) - outline.amin(0) + 1).float()
    assert extent.max() == pytest.approx(max(tall, wide) * scale, abs=0.5 * scale + 2)  # as large as agreed
    middle = (outline.amax(0) + outline.amin(0) + 1).float() / 2
    assert (middle - RESOLUTION / 2).abs().max() <= 0.5 * scale + 1  # and in the middle

    seen = framed[mask > 0.999]
    assert torch.allclose(seen, torch.tensor([1.0, 0.0, 0.0]).expand_as(seen), atol=0.01)
    outside = framed[mask < 0.001]
    assert torch.allclose(outside, torch.ones_like(outside), atol=0.01)
    if max(tall, wide) > 4:
        assert (mask[0, 0] == 0).all()  # a margin all round
        assert (mask[0, :, -1] == 0).all()


@pytest.mark.parametrize("masked", [True, False])
def test_a_size_that_only_the_page_forbids_is_rounded(masked: bool) -> None:
    image, mask = picture_of(64, 64, (10, 50, 10, 50))
    framed, _ = frame(image, mask if masked else None, 517)
    assert framed.shape == (1, 520, 520, 3)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 300), (301, 97), (1, 500), (500, 1), (1, 1), (7, 2000)])
def test_without_a_mask_the_whole_picture_keeps_its_aspect(height: int, width: int) -> None:
    image = torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(0))
    framed, mask = frame(image, None, RESOLUTION)
    assert mask is None
    assert framed.shape[1] % 8 == 0
    assert framed.shape[2] % 8 == 0
    if 1 / 16 < height / width < 16:
        assert framed.shape[1] / framed.shape[2] == pytest.approx(height / width, rel=0.15)
        assert framed.shape[1] * framed.shape[2] == pytest.approx(RESOLUTION**2, rel=0.15)


def test_a_soft_edge_blends_into_white() -> None:
    image, mask = picture_of(100, 100, (20, 80, 20, 80))
    framed, seen = frame(image, mask * 0.5, RESOLUTION)
    middle = framed[0, RESOLUTION // 2, RESOLUTION // 2]
    assert torch.allclose(middle, torch.tensor([1.0, 0.5, 0.5]), atol=0.01)
    assert seen is not None
    assert seen[0, RESOLUTION // 2, RESOLUTION // 2] == pytest.approx(0.5, abs=0.01)


def test_the_preview_shows_the_picture_and_what_is_masked_out() -> None:
    image, mask = picture_of(RESOLUTION, RESOLUTION, (20, 100, 20, 100))
    framed, _ = frame(image, mask, RESOLUTION)
    outlined, middle, rest = preview(image, mask, framed)[0].split(RESOLUTION, dim=1)
    assert torch.equal(middle[None], framed)
    inside = mask[0] > 0
    assert torch.equal(outlined[inside], image[0][inside])
    assert torch.equal(outlined[19, 60], torch.tensor(OUTLINE))  # the line runs outside
    assert torch.equal(outlined[10, 10], image[0, 10, 10])
    assert torch.equal(rest[~inside], image[0][~inside])
    assert torch.equal(rest[60, 60], torch.full((3,), EMPTY))


def test_without_a_mask_the_preview_shows_the_picture_and_what_was_made_of_it() -> None:
    image, _ = picture_of(60, 120, (20, 50, 20, 50))
    framed, _ = frame(image, None, RESOLUTION)
    shown = preview(image, None, framed)
    assert torch.equal(shown[:, :, -framed.shape[2] :], framed)
    assert shown.shape[1] == framed.shape[1]


# --- masks -----------------------------------------------------------------------------------------------------------


def centred_mask() -> Tensor:
    return picture_of(40, 60, (10, 30, 15, 45))[1]


@pytest.mark.parametrize(
    ("mask", "marks", "inverted"),
    [
        (centred_mask(), "auto", False),
        (1 - centred_mask(), "auto", True),  # LoadImage's mask of a cut-out picture
        (centred_mask(), "subject", False),
        (1 - centred_mask(), "subject", False),
        (centred_mask(), "background", True),
        (picture_of(40, 60, (10, 40, 15, 45))[1], "auto", False),  # touches one border
        (1 - picture_of(40, 60, (10, 40, 15, 45))[1], "auto", True),
        (torch.full((1, 40, 60), 0.2), "auto", True),  # a picture that is a little transparent all over
    ],
)
def test_one_is_the_subject(mask: Tensor, marks: str, inverted: bool) -> None:
    assert torch.equal(subject_mask(mask, marks), 1 - mask if inverted else mask)


def test_a_mask_comes_to_a_grid_by_area() -> None:
    mask = torch.zeros(1, 64, 64)
    mask[:, :12, :32] = 1.0  # one and a half cells of 8 high, four wide
    grid = to_grid(mask, 8, 8).reshape(8, 8)
    expected = torch.zeros(8, 8)
    expected[0, :4], expected[1, :4] = 1.0, 0.5
    assert torch.equal(grid, expected)
    assert to_grid(mask, 5, 7).shape == (35,)
    assert to_grid(mask, 5, 7).mean() == pytest.approx(float(mask.mean()), abs=0.02)


def test_a_grid_finer_than_the_mask_keeps_its_range() -> None:
    grid = to_grid(torch.tensor([[[0.0, 1.0]]]), 4, 4)
    assert grid.reshape(4, 4)[:, 0].tolist() == [0.0] * 4
    assert grid.reshape(4, 4)[:, 3].tolist() == [1.0] * 4


# --- grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 64), (16, 8), (13, 9), (97, 61), (1, 7), (31, 2)])
@pytest.mark.parametrize("levels", range(4))
def test_a_token_grid_is_what_the_convolutions_leave(height: int, width: int, levels: int) -> None:
    down = torch.nn.Conv2d(1, 1, 3, stride=2, padding=1)
    x = torch.zeros(1, 1, height, width)
    for _ in range(levels):
        x = down(x)
    assert token_grid(height, width, x.numel()) == tuple(x.shape[-2:])


def test_a_grid_of_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="63 tokens are not a downsampling of a 8x8 latent"):
        token_grid(8, 8, 63)


# --- the subject -----------------------------------------------------------------------------------------------------


def subject(noise_seed: int, mask: Tensor | None = None) -> Subject:
    return Subject(torch.ones(1, 64, 64, 3), mask, torch.zeros(1, 4, 8, 8), None, noise_seed)


def test_the_reference_noise_is_one_drawing_for_one_seed() -> None:
    noise = subject(3).noise()
    torch.manual_seed(99)
    assert torch.equal(noise, subject(3).noise())
    assert not torch.equal(noise, subject(4).noise())
    assert noise.shape == (1, 4, 8, 8)
    assert noise.std() == pytest.approx(1, abs=0.2)
    state = torch.get_rng_state()
    subject(3).noise()
    assert torch.equal(state, torch.get_rng_state())


def test_the_largest_seed_of_the_node_works() -> None:
    assert subject(0xFFFFFFFFFFFFFFFF).noise().isfinite().all()


def test_the_foreground_is_everything_without_a_mask() -> None:
    assert torch.equal(subject(0).foreground(4, 4), torch.ones(16))
    half = torch.zeros(1, 64, 64)
    half[:, :, 32:] = 1
    assert subject(0, half).foreground(2, 2).tolist() == [0, 1, 0, 1]
