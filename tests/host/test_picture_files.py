"""Files of every kind through the host's own LoadImage into Encode Subject Image: right, or a word about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch
from dreamtuner_pack.dreamtuner_core.subject import Subject
from images import bust, cut_out, told
from PIL import Image, ImageDraw, ImageFilter

import nodes

SIDE = 300
INSIDE = bust(SIDE)


def scene() -> Image.Image:
    """A shaded bust before sand."""
    image = cut_out(INSIDE)[0][0] + (~INSIDE)[..., None] * torch.tensor([0.8, 0.65, 0.4])
    return Image.fromarray((image * 255).byte().numpy())


def alpha() -> Image.Image:
    return Image.fromarray(INSIDE.byte().numpy() * 255)


def cut() -> Image.Image:
    image = scene()
    image.putalpha(alpha())
    return image


def loaded(path: Path, **inputs: Any) -> tuple[Subject, list[str]]:
    image, mask = nodes.LoadImage().load_image(path.name)
    return told(image, mask=mask, **inputs)


@pytest.fixture(autouse=True)
def input_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    return tmp_path


def keyed() -> Image.Image:
    """A palette whose last colour is transparent."""
    colours = scene().quantize(63)
    index = np.where(INSIDE.numpy(), np.asarray(colours), 63).astype(np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette([*colours.getpalette()[: 3 * 63], 255, 0, 255])
    return image


CUT_OUTS: dict[str, Callable[[Path], None]] = {
    "rgba.png": lambda path: cut().save(path),
    "grey with alpha.png": lambda path: cut().convert("LA").save(path),
    "palette with alpha.png": lambda path: cut().quantize(64).save(path),
    "palette with a key.png": lambda path: keyed().save(path, transparency=63),
    "one frame.gif": lambda path: keyed().save(path, transparency=63),
    "lossless.webp": lambda path: cut().save(path, lossless=True),
}


@pytest.mark.parametrize("name", CUT_OUTS)
def test_a_cut_out_of_any_kind_is_the_same_subject(input_folder: Path, name: str) -> None:
    CUT_OUTS[name](input_folder / name)
    subject, notes = loaded(input_folder / name)
    assert notes[0] == "turned"
    expected, _ = told(cut_out(INSIDE)[0], mask=INSIDE[None].float(), mask_marks="subject")
    assert (subject.mask - expected.mask).abs().mean() < 0.002


def turned_on_its_side(path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # a phone's: turn it by a quarter
    scene().rotate(90, expand=True).save(path, exif=exif, quality=95)


OPAQUE: dict[str, Callable[[Path], None]] = {
    "rgb.tif": lambda path: scene().save(path),
    "on its side.jpg": turned_on_its_side,
    "cmyk.jpg": lambda path: scene().convert("CMYK").save(path, quality=95),
    "grey.png": lambda path: scene().convert("L").save(path),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_an_opaque_picture_of_any_kind_stands_upright(input_folder: Path, name: str) -> None:
    OPAQUE[name](input_folder / name)
    subject, notes = loaded(input_folder / name, find_subject="never", resolution=256)
    assert not {*notes} - {"blurred"}  # its shades are soft, in grey all of them
    expected = scene().convert("L").convert("RGB") if name.startswith("grey") else scene()
    good, _ = told(torch.from_numpy(np.asarray(expected))[None] / 255, find_subject="never", resolution=256)
    assert (subject.picture - good.picture).abs().mean() < 0.02


def shortened(kind: str, **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        scene().save(path, kind, **options)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])

    return write


def grey_16(path: Path) -> None:
    Image.fromarray(np.asarray(scene().convert("L")).astype(np.uint16) * 257).save(path)


SAID: dict[str, tuple[Callable[[Path], None], str]] = {
    "grey 16.png": (grey_16, "no_detail"),  # the host makes it all white
    "cut short.jpg": (shortened("JPEG", quality=95), "cut_short"),
    "cut short.png": (shortened("PNG"), "cut_short"),
    "one pixel.png": (lambda path: Image.new("RGB", (1, 1), (200, 30, 30)).save(path), "small"),
}


@pytest.mark.parametrize("find", ["never", "when there is no mask"])
@pytest.mark.parametrize("name", SAID)
def test_what_is_wrong_with_a_file_is_said(input_folder: Path, name: str, find: str) -> None:
    write, hint = SAID[name]
    write(input_folder / name)
    assert hint in loaded(input_folder / name, find_subject=find)[1]


def test_an_animation_is_a_batch(input_folder: Path) -> None:
    scene().save(input_folder / "two.gif", save_all=True, append_images=[scene().rotate(90)])
    with pytest.raises(ValueError, match="batch of 2; select one of them with Image From Batch"):
        loaded(input_folder / "two.gif")


def lines() -> Image.Image:
    image = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    draw.line((20, 20, 280, 280), fill=255)
    draw.line((20, 280, 280, 150), fill=255)
    return image


def in_a_corner() -> Image.Image:
    image = Image.new("L", (SIDE, SIDE))
    image.paste(alpha().resize((120, 120)), (0, 180))
    return image


def twins() -> Image.Image:
    image = Image.new("L", (SIDE, SIDE))
    for left in (10, 160):
        image.paste(alpha().resize((130, 130)), (left, 60))
    return image


MATTES: dict[str, Callable[[], Image.Image]] = {
    "lines of a pixel": lines,
    "soft": lambda: alpha().filter(ImageFilter.GaussianBlur(15)),
    "in a corner": in_a_corner,
    "twins": twins,
    "a sticker's ring": lambda: Image.fromarray(
        np.asarray(alpha().filter(ImageFilter.MaxFilter(9))) - np.asarray(alpha())
    ),
}


@pytest.mark.parametrize("name", MATTES)
def test_a_matte_of_any_kind_is_taken_as_it_is(input_folder: Path, name: str) -> None:
    """Auto agrees with the artist who knows what the mask marks, whichever side LoadImage or an editor made white."""
    matte = MATTES[name]()
    share = torch.from_numpy(np.asarray(matte)) / 255
    image = cut_out(share > 0)[0]
    saved = Image.fromarray((image[0] * 255).byte().numpy())
    saved.putalpha(matte)
    saved.save(input_folder / "matte.png")
    found, _ = loaded(input_folder / "matte.png")
    known, _ = loaded(input_folder / "matte.png", mask_marks="background")
    assert torch.equal(found.mask, known.mask)
    assert known.mask.max() > 0.2
    assert (told(image, mask=share[None])[0].mask - known.mask).abs().max() < 1e-4


def test_a_white_thing_on_white_keeps_its_shades() -> None:
    """It is pale by itself: its contrast is raised a little at most."""
    image = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    draw.ellipse((60, 40, 240, 260), fill=(243, 243, 240), outline=(225, 225, 225))
    draw.ellipse((110, 90, 150, 140), fill=(200, 200, 205))
    subject, _ = told(torch.from_numpy(np.asarray(image))[None] / 255)
    assert subject.mask is not None
    assert 0.15 < subject.mask.mean() < 0.6
    assert subject.picture.min() > 0.55
