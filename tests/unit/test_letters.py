"""Writing on pictures: no letter is lost, and none runs into what stands beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from dreamtuner_core.picture import letters
from dreamtuner_core.picture.letters import legible, put, wrapped
from dreamtuner_core.tuning.report import report


def drawn(text: str, width: float = 200) -> np.ndarray:
    """Where there is ink: [40, 300]."""
    page = Image.new("RGB", (300, 40), "white")
    put(ImageDraw.Draw(page), (0, 2), text, 15, "black", width)
    return np.asarray(page.convert("L")) < 128


def test_a_line_stays_in_its_column() -> None:
    for text in ("W" * 80, "a teapot my_very_long_name_of_a_teapot", "犬" * 60):
        assert not drawn(text)[:, 201:].any()
        assert drawn(text)[:, 150:200].any(), "it is cut, not left out"


def test_different_letters_look_different() -> None:
    if not letters._installed():
        pytest.skip("this system has no font")
    words = ["a dog 犬", "a dog 猫", "a dog ж", "a dog é"]
    pages = [drawn(word).tobytes() for word in words]
    assert len(set(pages)) == len(words)


def test_without_a_font_that_has_them_letters_are_romanised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "_installed", tuple)
    assert legible("a dog", 15)[0] == "a dog"
    assert legible("いぬ カバ", 15)[0] == "inu kaba"
    assert legible("犬", 15)[0] == "U+72AC"
    assert "?" not in legible("Жучка 犬 개", 15)[0]


def test_lines_break_at_spaces_and_within_long_words() -> None:
    said = "a teapot and a very long title " + "x" * 80
    lines = wrapped(said, 15, 200)
    assert "".join(lines).replace(" ", "") == said.replace(" ", "")
    font = legible(said, 15)[1]
    assert all(font.getlength(line) <= 200 for line in lines)


def test_a_report_keeps_the_shape_of_its_pictures() -> None:
    """A circle in a picture twice as wide as high is a circle in the report."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(128), indexing="ij")
    inside = (y - 32) ** 2 + (x - 64) ** 2 < 24**2
    picture = torch.where(inside[..., None], torch.tensor([200, 0, 0]), torch.tensor([255, 255, 255])).byte()
    page = report("a dog 犬", [1.0, 0.5], {1: picture[None]}, ["a dog"])[0]
    red = (page[..., 0] > 0.6) & (page[..., 1] < 0.2) & (page[..., 2] < 0.2)
    rows, columns = red.any(1).sum(), red.any(0).sum()
    assert rows > 100
    assert abs(int(rows) - int(columns)) <= 2
