"""Contact sheets: labelled pictures in a grid, under a title; for the nodes and the lab."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .letters import put, wrapped

PAPER, INK, FAINT = (255, 255, 255), (24, 24, 28), (110, 110, 118)
PASSED, FAILED = (0, 114, 178), (196, 78, 0)  # blue and vermilion (Okabe and Ito), safe for colour-blind viewers
GAP = 16
TEXT, TITLE, BADGE = 15, 19, 30  # font sizes and the side of a tick or cross, in pixels


class Cell(NamedTuple):
    """A picture with its label. note: a second, fainter line. passed: a tick or a cross on it; None for neither."""

    picture: Image.Image
    label: str = ""
    note: str = ""
    passed: bool | None = None


def contact_sheet(cells: Sequence[Cell], title: str = "", columns: int | None = None, side: int = 256) -> Image.Image:
    """Arrange the cells row by row, each picture fitted into a square of `side` pixels."""
    columns = columns or len(cells)
    rows = -(-len(cells) // columns)
    width = columns * (side + GAP) + GAP
    head = wrapped(title, TITLE, width - 2 * GAP)
    top = GAP + len(head) * (TITLE + 6)
    lines = max((2 if cell.note else bool(cell.label)) for cell in cells)
    row_height = side + lines * (TEXT + 6) + GAP
    sheet = Image.new("RGB", (width, top + rows * row_height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for line, text in enumerate(head):
        put(pen, (GAP, GAP // 2 + line * (TITLE + 6)), text, TITLE, INK, width - 2 * GAP)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        left, y = GAP + column * (side + GAP), top + row * row_height
        picture = fitted(cell.picture, side)
        corner = left + (side - picture.width) // 2, y + (side - picture.height) // 2
        sheet.paste(picture, corner)
        if cell.passed is not None:
            _badge(pen, corner, cell.passed)
        put(pen, (left, y + side + 4), cell.label, TEXT, INK, side)
        put(pen, (left, y + side + TEXT + 8), cell.note, TEXT - 2, FAINT, side)
    return sheet


def _badge(pen: ImageDraw.ImageDraw, corner: tuple[int, int], passed: bool) -> None:
    """A tick on a disc, or a cross on a square: readable without colour."""
    x, y = corner[0] + 6, corner[1] + 6
    box, unit = (x, y, x + BADGE, y + BADGE), BADGE / 10
    if passed:
        pen.ellipse(box, PASSED, PAPER, 2)
        strokes: list[tuple[tuple[float, float], ...]] = [((2.6, 5.2), (4.4, 7.0), (7.6, 3.2))]
    else:
        pen.rectangle(box, FAILED, PAPER, 2)
        strokes = [((2.8, 2.8), (7.2, 7.2)), ((7.2, 2.8), (2.8, 7.2))]
    for stroke in strokes:
        pen.line([(x + a * unit, y + b * unit) for a, b in stroke], PAPER, 4, joint="curve")


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """The picture scaled to fit the square; transparency is drawn as a checkerboard."""
    scale = side / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    if "A" in picture.getbands():
        picture = Image.alpha_composite(_checkerboard(picture.size), picture.convert("RGBA"))
    return picture.convert("RGB").resize((size[0], size[1]), Image.Resampling.LANCZOS)


def _checkerboard(size: tuple[int, int]) -> Image.Image:
    tile = max(1, max(size) // 16)
    board = Image.new("RGBA", size, (255, 255, 255, 255))
    pen = ImageDraw.Draw(board)
    for y in range(0, size[1], tile):
        for x in range((y // tile % 2) * tile, size[0], 2 * tile):
            pen.rectangle((x, y, x + tile - 1, y + tile - 1), (222, 222, 226, 255))
    return board


def as_image(picture: Tensor) -> Image.Image:
    """Convert a picture [H, W, 3], in 0..1 or bytes, for a sheet."""
    if picture.dtype != torch.uint8:
        picture = (picture.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(picture.numpy())


def as_tensor(image: Image.Image) -> Tensor:
    """Convert to the host's IMAGE: [1, H, W, 3] in 0..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).float()[None] / 255
