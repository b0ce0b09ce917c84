"""Contact sheets: labelled pictures in a grid, under a title. Cards: one picture, and in its corner what made it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

PAPER, INK, FAINT = (255, 255, 255), (24, 24, 28), (110, 110, 118)
GAP = 16
TEXT, TITLE = 15, 19  # font sizes in pixels
CARD, INSET, EDGE = 512, 120, 5  # sides of a card and of what lies in its corner, and that one's white edge


class Cell(NamedTuple):
    """A picture with its label; `note` is a second, fainter line."""

    picture: Image.Image
    label: str = ""
    note: str = ""


def contact_sheet(cells: Sequence[Cell], title: str = "", columns: int | None = None, side: int = 256) -> Image.Image:
    """Lay the cells out row by row, each picture as large as fits in a square of `side` pixels."""
    columns = columns or len(cells)
    rows = -(-len(cells) // columns)
    width = columns * (side + GAP) + GAP
    head = textwrap.wrap(title, max(1, width // (TITLE // 2)))
    top = GAP + len(head) * (TITLE + 6)
    lines = max((2 if cell.note else bool(cell.label)) for cell in cells)
    row_height = side + lines * (TEXT + 6) + GAP
    sheet = Image.new("RGB", (width, top + rows * row_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for line, text in enumerate(head):
        draw.text((GAP, GAP // 2 + line * (TITLE + 6)), text, INK, ImageFont.load_default(TITLE))
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        left, y = GAP + column * (side + GAP), top + row * row_height
        picture = fitted(cell.picture, side)
        sheet.paste(picture, (left + (side - picture.width) // 2, y + (side - picture.height) // 2))
        draw.text((left, y + side + 4), cell.label, INK, ImageFont.load_default(TEXT))
        draw.text((left, y + side + TEXT + 8), cell.note, FAINT, ImageFont.load_default(TEXT - 2))
    return sheet


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """Scaled to fit the square; what is transparent shows as a checkerboard."""
    scale = side / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    if "A" in picture.getbands():
        picture = Image.alpha_composite(_checkerboard(picture.size), picture.convert("RGBA"))
    return picture.convert("RGB").resize((size[0], size[1]), Image.Resampling.LANCZOS)


def _checkerboard(size: tuple[int, int]) -> Image.Image:
    tile = max(1, max(size) // 16)
    board = Image.new("RGBA", size, (255, 255, 255, 255))
    draw = ImageDraw.Draw(board)
    for y in range(0, size[1], tile):
        for x in range((y // tile % 2) * tile, size[0], 2 * tile):
            draw.rectangle((x, y, x + tile - 1, y + tile - 1), (222, 222, 226, 255))
    return board


def card(result: Image.Image, *corner: Image.Image) -> Image.Image:
    """A workflow's thumbnail. Square, for the page's template list frames it so."""
    square = ImageOps.fit(result.convert("RGB"), (CARD, CARD), Image.Resampling.LANCZOS)
    for i, picture in enumerate(corner):
        white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
        inset = ImageOps.pad(white.convert("RGB"), (INSET, INSET), Image.Resampling.LANCZOS, color="white")
        square.paste(ImageOps.expand(inset, EDGE, "white"), (GAP + i * (INSET + 2 * EDGE + GAP), GAP))
    return square
