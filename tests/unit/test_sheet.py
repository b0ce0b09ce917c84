"""The contact sheet: its size, and what tells passed from failed."""

from __future__ import annotations

import torch
from PIL import Image

from dreamtuner_core.picture.sheet import GAP, Cell, as_image, as_tensor, contact_sheet

GREY = Image.new("RGB", (40, 20), (128, 128, 128))


def test_rows_and_columns() -> None:
    cells = [Cell(GREY, str(i)) for i in range(5)]
    one_row, two_rows = contact_sheet(cells, side=64), contact_sheet(cells, columns=3, side=64)
    assert one_row.width == 5 * (64 + GAP) + GAP
    assert two_rows.width == 3 * (64 + GAP) + GAP
    assert two_rows.height > one_row.height


def test_passed_and_failed_differ_without_colour() -> None:
    passed, failed, neither = (
        contact_sheet([Cell(GREY, passed=verdict)], side=128).convert("L") for verdict in (True, False, None)
    )
    marks = [torch.tensor(list(sheet.tobytes())).float() for sheet in (passed, failed, neither)]
    assert (marks[0] - marks[1]).abs().max() > 64
    assert min((mark - marks[2]).abs().max() for mark in marks[:2]) > 64


def test_labels_of_any_language_stay_in_their_column() -> None:
    """A label as long as one likes changes nothing beside it."""
    plain, long = (contact_sheet([Cell(GREY, label), Cell(GREY, "b")], "題", side=64) for label in ("", "東京" * 40))
    box = (GAP + 64 + 2, 0, plain.width, plain.height)
    assert plain.crop(box).tobytes() == long.crop(box).tobytes()
    assert plain.tobytes() != long.tobytes()


def test_pictures_come_and_go() -> None:
    picture = torch.rand(6, 4, 3, generator=torch.Generator().manual_seed(0))
    assert (as_tensor(as_image(picture))[0] - picture).abs().max() <= 0.5 / 255 + 1e-6
