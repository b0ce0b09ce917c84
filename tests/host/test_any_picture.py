"""Encode Subject Image takes whatever picture an artist has, and says what it made of it."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from dreamtuner_pack.dreamtuner_core.subject import Subject
from dreamtuner_pack.nodes.subject import FindSubject
from images import ball, bust, cut_out, disc, encode, mask, overlap, picture, told
from torch import Tensor


def filled(subject: Subject) -> float:
    assert subject.mask is not None
    return float(subject.mask.mean())


def rounded(height: int, width: int, radius: int) -> Tensor:
    """A rectangle with rounded corners that fills its picture: [height, width] bool."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    dy = (radius - torch.minimum(y, height - 1 - y)).clamp(min=0)
    dx = (radius - torch.minimum(x, width - 1 - x)).clamp(min=0)
    return dy**2 + dx**2 <= radius**2


def pieces(*parts: tuple[int, int, int, int]) -> Tensor:
    """Rectangles (top, bottom, left, right) in a picture of 300 x 300."""
    inside = torch.zeros(300, 300, dtype=torch.bool)
    for top, bottom, left, right in parts:
        inside[top:bottom, left:right] = True
    return inside


TRIMMED = {
    "a book": rounded(300, 200, 24),
    "a phone": rounded(400, 190, 40),
    "a bust": bust(),
    "a ball": rounded(300, 300, 150),
    "a close-up of a cat": rounded(300, 300, 60) | (torch.arange(300)[:, None] > 150),
    "a chair": pieces((0, 300, 0, 40), (0, 300, 260, 300), (130, 170, 0, 300)),
    "a letter L": pieces((0, 300, 0, 80), (220, 300, 0, 300)),
    "a picture's frame": ~pieces((60, 240, 60, 240)),
    "a bow": (torch.arange(300)[:, None] - 150).abs() < 20 + (torch.arange(300) - 150).abs(),
    "a half": pieces((160, 300, 0, 300)),
}


@pytest.mark.parametrize("inside", TRIMMED.values(), ids=TRIMMED.keys())
def test_a_trimmed_cut_out_is_the_subject(inside: Tensor) -> None:
    image, marked = cut_out(inside)
    subject, notes = told(image, mask=marked)
    assert "turned" in notes
    expected, _ = told(image, mask=1 - marked, mask_marks="subject")
    assert torch.equal(subject.mask, expected.mask)
    painted, notes = told(image, mask=1 - marked)  # and painted in white
    assert "turned" not in notes
    assert torch.equal(painted.mask, expected.mask)


DIRT = {
    "a pixel in a corner": (slice(790, 791), slice(3, 4)),
    "a line along an edge": (slice(None), slice(0, 2)),
    "a line along the bottom": (slice(799, 800), slice(None)),
    "dots": (slice(5, None, 40), slice(5, 200, 40)),
}


@pytest.mark.parametrize("share", [40 / 255, 1.0])
@pytest.mark.parametrize("where", DIRT.values(), ids=DIRT.keys())
def test_a_speck_changes_nothing(where: tuple[slice, slice], share: float) -> None:
    image, marked = cut_out(disc(800, 800, (400, 400), 150))
    clean, said = told(image, mask=marked)
    speck = marked.clone()
    speck[0][where] = 1 - share
    seen, also_said = told(image, mask=speck)
    assert torch.equal(seen.mask, clean.mask)
    assert torch.equal(seen.picture, clean.picture)
    assert also_said == said


def test_a_noisy_matte_frames_the_subject() -> None:
    image, marked = cut_out(disc(800, 800, (400, 400), 150))
    noise = 0.12 * torch.rand(marked.shape, generator=torch.Generator().manual_seed(0))
    subject, _ = told(image, mask=(1 - marked + noise).clamp(max=1), mask_marks="subject")
    assert filled(subject) == pytest.approx(filled(told(image, mask=marked)[0]), rel=0.05)


def test_load_images_empty_mask_is_no_mask_and_the_subject_is_found() -> None:
    where = disc(300, 400, (150, 200), 90)
    for none in (None, torch.zeros(1, 64, 64), torch.zeros(64, 64), torch.zeros(7, 64, 64)):
        subject, notes = told(ball(where), mask=none)
        assert notes[0] == "found"
        expected, _ = told(ball(where), mask=where[None].float(), mask_marks="subject")
        assert overlap(subject.mask > 0.5, expected.mask > 0.5) > 0.9


def test_never_takes_the_whole_picture() -> None:
    subject, notes = told(ball(disc()), find_subject="never")
    assert subject.mask is None
    assert "found" not in notes


def test_nothing_stands_out_of_a_plain_picture_and_that_is_said() -> None:
    subject, notes = told(torch.full((1, 300, 300, 3), 0.5))
    assert subject.mask is None
    assert notes[0] == "nothing_found"
    assert "no_detail" in notes


DIM = {"neutral": (0.3, 0.3, 0.3), "warm": (0.6, 0.5, 0.4), "cool": (0.35, 0.4, 0.5)}


@pytest.mark.parametrize("light", DIM.values(), ids=DIM.keys())
def test_a_dark_subject_is_mended_and_a_good_one_is_left_alone(light: tuple[float, ...]) -> None:
    image, marked = cut_out(disc(400, 400, (200, 200), 180))
    good, notes = told(image, mask=marked, light="auto", resolution=256)
    assert notes == ["turned"]
    assert torch.equal(good.picture, told(image, mask=marked, light="as it is", resolution=256)[0].picture)
    dim = image * torch.tensor(light)
    dark, notes = told(dim, mask=marked, light="as it is", resolution=256)
    assert "mended" not in notes
    mended, notes = told(dim, mask=marked, resolution=256)
    assert "mended" in notes
    lost, left = ((x.picture - good.picture).abs().mean() for x in (dark, mended))
    assert left < 0.2 * lost
    outside = good.mask < 0.001
    assert torch.allclose(mended.picture[outside], torch.ones_like(mended.picture[outside]), atol=0.01)


def test_a_red_subject_in_the_dark_stays_red() -> None:
    """Its colour is its own: the balance of the light is bounded, and taken from the rest of the picture too."""
    image, marked = cut_out(disc(400, 400, (200, 200), 180))
    red = 0.5 * image * torch.tensor([1.0, 0.3, 0.2]) + 0.4 * marked[..., None]  # on grey
    mended, notes = told(red, mask=marked, resolution=256)
    assert "mended" in notes
    seen = mended.picture[mended.mask > 0.9].mean(0)
    assert seen[0] > 2.5 * seen[1:].max()


BY_ITSELF = {"black": (0.1, 0.8), "white": (0.7, 0.1)}


@pytest.mark.parametrize(("least", "ground"), BY_ITSELF.values(), ids=BY_ITSELF.keys())
def test_a_subject_that_is_black_or_white_by_itself_stays_so(least: float, ground: float) -> None:
    """The scene tells that the light is good."""
    inside = disc(400, 400, (200, 200), 150)
    shades = least + 0.2 * sharp() if least > 0.5 else least * sharp()
    image = torch.where(inside[..., None], shades, torch.full_like(shades, ground) + 0.02 * sharp().transpose(1, 2))
    given = {"mask": inside[None].float(), "mask_marks": "subject", "resolution": 256}
    seen, notes = told(image, **given)
    assert "mended" not in notes
    assert torch.equal(seen.picture, told(image, light="as it is", **given)[0].picture)


def test_a_black_thing_on_pure_white_stays_black() -> None:
    inside = disc(400, 400, (200, 200), 150)
    image = torch.where(inside[..., None], 0.3 * sharp(), torch.ones(()))
    subject, notes = told(image, resolution=256)
    assert notes[0] == "found"
    assert "mended" not in notes
    assert subject.picture[subject.mask > 0.9].median() < 0.3


def test_what_lies_under_transparency_says_nothing_of_the_light() -> None:
    image, marked = cut_out(disc(400, 400, (200, 200), 150))
    dark = image * torch.tensor([0.6, 0.5, 0.4])
    black, white = (told(dark + under * marked[..., None], mask=marked)[0] for under in (0, 1))
    assert torch.allclose(black.picture, white.picture, atol=1e-3)
    assert not torch.equal(black.picture, told(dark, mask=marked, light="as it is")[0].picture)


def sharp(side: int = 400) -> Tensor:
    """Stripes."""
    stripes = (torch.arange(side) // 8 % 2).float() * 0.7 + 0.2
    return stripes[None, :, None, None].expand(1, side, side, 3).clone()


def blurred(image: Tensor) -> Tensor:
    small = torch.nn.functional.interpolate(image.movedim(-1, 1)[..., ::8, ::8], [20, 20], mode="area")
    return torch.nn.functional.interpolate(small, image.shape[1:3], mode="bicubic").movedim(1, -1).clamp(0, 1)


def cut_short(image: Tensor) -> Tensor:
    image[:, 300:] = 128 / 255
    return image


SAID = {
    "nothing": (sharp(), None),
    "too dark": (0.1 * sharp(), "too_dark"),
    "too bright": (0.95 + 0.05 * sharp(), "too_bright"),
    "blurred": (blurred(sharp()), "blurred"),
    "24 pixels": (sharp(24), "small"),
    "all white, as the host makes 16-bit grey": (torch.ones(1, 400, 400, 3), "no_detail"),
    "cut short": (cut_short(sharp()), "cut_short"),
}


@pytest.mark.parametrize(("image", "hint"), SAID.values(), ids=SAID.keys())
def test_what_speaks_against_a_picture_is_said(image: Tensor, hint: str | None) -> None:
    _, notes = told(image, find_subject="never", light="as it is", resolution=256)
    assert hint in notes if hint else notes == []


def test_a_subject_cut_at_the_border_is_said() -> None:
    inside = disc(400, 400, (200, 390), 150)
    _, notes = told(cut_out(inside)[0], mask=inside[None].float(), mask_marks="subject")
    assert "cut" in notes


@pytest.mark.parametrize(("width", "side"), [(768, 512), (1024, 768), (2048, 1024), (77, 512)])
def test_auto_resolution_is_the_familys(width: int, side: int) -> None:
    caption = [[torch.zeros(1, 77, width), {}]]
    subject, _ = told(picture(64, 64), mask=mask(64, 64), caption=caption, resolution=0)
    assert subject.picture.shape[1] == side
    assert told(picture(64, 64), mask=mask(64, 64), caption=caption, resolution=64)[0].picture.shape[1] == 64


def test_with_nothing_to_tell_the_family_it_is_512() -> None:
    assert told(picture(64, 64), mask=mask(64, 64), resolution=0)[0].picture.shape[1] == 512


REFUSED = {
    "resolution below 0": ({"resolution": -8}, "resolution must be between 64 and 2048, but is -8; 0 is auto"),
    "resolution 4": ({"resolution": 4}, "resolution must be between 64 and 2048, but is 4"),
    "resolution 4096": ({"resolution": 4096}, "resolution must be between 64 and 2048, but is 4096"),
    "resolution a float": ({"resolution": 512.0}, "resolution must be a whole number"),
    "a seed below 0": ({"noise_seed": -1}, "noise_seed must be between 0 and"),
    "a seed too large": ({"noise_seed": 2**64}, "noise_seed must be between 0 and"),
    "a seed of another kind": ({"noise_seed": 1.5}, "noise_seed must be a whole number"),
    "an unknown choice": ({"light": "bright"}, "light must be one of as it is, auto, but is 'bright'"),
    "a mask that is a number": ({"mask": torch.tensor(1.0)}, r"rows and columns .* a float32 tensor of shape \(\)"),
    "a mask that is a row": ({"mask": torch.ones(48)}, r"rows and columns .* a float32 tensor of shape \(48,\)"),
    "a painted mask that is empty": ({"mask": torch.zeros(1, 48, 40)}, "the mask is empty"),
}


@pytest.mark.parametrize(("inputs", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_linked_is_checked(inputs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^Encode Subject Image: .*{sentence}"):
        encode(picture(), **inputs)


def test_a_batch_is_told_of_image_from_batch() -> None:
    with pytest.raises(ValueError, match="batch of 5; select one of them with Image From Batch"):
        encode(picture().expand(5, -1, -1, -1))


# --- memory ----------------------------------------------------------------------------------------------------------


class Peak:
    """How far the process grows while something runs, in bytes: sampled, as torch counts nothing on the CPU."""

    def __enter__(self) -> Peak:
        gc.collect()
        self.before = self.most = self._now()
        self.ended = threading.Event()
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.watcher.join()

    def _watch(self) -> None:
        while not self.ended.is_set():
            self.most = max(self.most, self._now())
            time.sleep(0.002)

    @staticmethod
    def _now() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def bytes(self) -> int:
        return self.most - self.before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the process's size is read from /proc")
@pytest.mark.parametrize(("height", "width"), [(3000, 4000), (100, 6000), (60, 16000), (16000, 60)])
@pytest.mark.parametrize("masked", [True, False])
def test_a_large_picture_takes_little_memory(height: int, width: int, masked: bool) -> None:
    told(picture(), mask=mask())  # what the first run loads is not counted
    told(ball(disc()))
    inside = torch.zeros(1, height, width)
    inside[:, height // 10 : -height // 10, width // 10 : -width // 10] = 1
    image = torch.rand(1, height, width, 3)
    given = {"mask": inside} if masked else {}
    with Peak() as peak:
        subject, _ = told(image, resolution=512, **given)
    assert peak.bytes < 300 * 2**20
    if masked:
        assert subject.picture.shape == (1, 512, 512, 3)


# --- Find Subject ----------------------------------------------------------------------------------------------------


def test_find_subject_gives_masks_and_a_preview() -> None:
    places = [disc(), disc(centre=(90, 200), radius=50)]
    output = FindSubject.execute(torch.cat([ball(place) for place in places]), 0.5, 0, "all")
    found, preview = output.args
    assert all(overlap(one, place) > 0.93 for one, place in zip(found, places))
    assert preview.shape[0] == 2
    assert len(output.ui["images"]) == 2
    wider = FindSubject.execute(ball(places[0]), 0.5, 5, "all").args[0]
    tighter = FindSubject.execute(ball(places[0]), 0.5, -5, "all").args[0]
    assert wider.sum() > found[0].sum() > tighter.sum()


def test_the_largest_area_alone_is_kept() -> None:
    two = disc(300, 500, (150, 130), 100) | disc(300, 500, (150, 400), 50)
    both, one = (FindSubject.execute(ball(two), 0.5, 0, keep).args[0] for keep in ("all", "largest"))
    assert overlap(both[0], two) > 0.85
    assert overlap(one[0], disc(300, 500, (150, 130), 100)) > 0.85


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ((torch.full((1, 90, 120, 3), 0.5), 0.5, 0, "all"), "nothing stands out in this picture; paint the subject"),
        ((torch.full((2, 90, 120, 3), 0.5), 0.5, 0, "all"), "nothing stands out in picture 1 of 2"),
        ((picture(), 1.5, 0, "all"), "threshold must be between 0 and 1, but is 1.5"),
        ((picture(), 0.5, 1000, "all"), "grow must be between -256 and 256, but is 1000"),
        ((picture(), 0.5, 0, "none"), "keep must be one of all, largest, but is 'none'"),
        ((torch.rand(90, 120, 3), 0.5, 0, "all"), "expected RGB pictures, but got a tensor of shape"),
    ],
)
def test_find_subject_refuses_in_one_sentence(inputs: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^Find Subject: .*{sentence}"):
        FindSubject.execute(*inputs)
