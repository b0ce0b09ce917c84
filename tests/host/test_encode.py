"""Encode Subject Image on the host's own VAE: what comes out for good pictures."""

from __future__ import annotations

import pytest
import torch
from families import text
from images import RESOLUTION, encode, mask, picture, vae


class EmptyTextClip:
    """A CLIP that only knows the empty text."""

    def tokenize(self, words: str) -> str:
        assert words == ""
        return words

    def encode_from_tokens_scheduled(self, tokens: str) -> list:
        return text("sd1", 0)


@pytest.mark.parametrize(("height", "width"), [(48, 40), (100, 30), (30, 100), (1, 90), (90, 1), (7, 7), (333, 517)])
@pytest.mark.parametrize("masked", [False, True])
def test_any_size_becomes_a_subject(height: int, width: int, masked: bool) -> None:
    given = {"mask": mask(height, width)} if masked else {"find_subject": "never"}
    subject, preview = encode(picture(height, width), **given)
    rows, columns = subject.picture.shape[1:3]
    assert subject.latent.shape == (1, 4, rows // 8, columns // 8)
    assert preview.shape[:2] == (1, rows)  # the picture as it came, what was made of it, what is left out
    assert preview.shape[3] == 3
    assert any(torch.equal(preview[:, :, i : i + columns], subject.picture) for i in range(preview.shape[2]))
    assert subject.latent.isfinite().all()
    assert (subject.mask is not None) == masked
    if masked:
        assert (rows, columns) == (RESOLUTION, RESOLUTION)


def test_the_latent_is_the_vaes_of_the_framed_picture() -> None:
    subject, _ = encode(picture(), mask=mask())
    assert torch.equal(subject.latent, vae().encode(subject.picture))


@pytest.mark.parametrize("shape", [(1, 48, 40), (48, 40), (1, 1, 48, 40)])
def test_a_mask_of_any_rank_is_the_same_mask(shape: tuple[int, ...]) -> None:
    expected, _ = encode(picture(), mask=mask())
    subject, _ = encode(picture(), mask=mask().reshape(shape))
    assert torch.equal(subject.latent, expected.latent)


def test_the_mask_of_a_cut_out_picture_works_as_load_image_gives_it() -> None:
    """LoadImage's mask marks what is transparent."""
    expected, _ = encode(picture(), mask=mask())
    subject, _ = encode(picture(), mask=1 - mask())
    assert torch.equal(subject.latent, expected.latent)
    assert torch.equal(subject.mask, expected.mask)


def test_a_fourth_channel_is_left_out() -> None:
    expected, _ = encode(picture(channels=4)[..., :3])
    assert torch.equal(encode(picture(channels=4))[0].latent, expected.latent)


def test_the_caption_comes_before_the_empty_text() -> None:
    caption = text("sd1", 5)
    assert encode(picture(), caption=caption, clip=EmptyTextClip())[0].caption is caption
    empty = encode(picture(), clip=EmptyTextClip())[0].caption
    assert torch.equal(empty[0][0], text("sd1", 0)[0][0])
    assert encode(picture())[0].caption is None


def test_the_noise_seed_is_the_subjects_own() -> None:
    assert encode(picture(), noise_seed=7)[0].noise_seed == 7
    assert not torch.equal(encode(picture(), noise_seed=7)[0].noise(), encode(picture())[0].noise())


def test_the_inputs_are_left_as_they_were() -> None:
    image, seen = picture(), mask()
    encode(image, mask=seen)
    assert torch.equal(image, picture())
    assert torch.equal(seen, mask())
