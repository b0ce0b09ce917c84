"""A workflow's card: one picture, and in its corner the pictures that it was made from."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageOps

SIDE, INSET, EDGE, GAP = 512, 120, 5, 16  # pixels: side of the card, of a picture in its corner, white edge, gap


def card(result: Image.Image, *corner: Image.Image) -> Image.Image:
    """The card, a square, as the page's template list shows it."""
    square = ImageOps.pad(result.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS, "white", (0.5, 1.0))
    for i, picture in enumerate(corner):
        white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
        inset = ImageOps.pad(white.convert("RGB"), (INSET, INSET), Image.Resampling.LANCZOS, color="white")
        square.paste(ImageOps.expand(inset, EDGE, "white"), (GAP + i * (INSET + 2 * EDGE + GAP), GAP))
    return square


def four(pictures: Sequence[Image.Image]) -> Image.Image:
    """The first four as one square, two by two."""
    square = Image.new("RGB", (SIDE, SIDE), "white")
    for i, picture in enumerate(pictures[:4]):
        half = ImageOps.fit(picture.convert("RGB"), (SIDE // 2 - 2, SIDE // 2 - 2), Image.Resampling.LANCZOS)
        square.paste(half, (i % 2 * (SIDE // 2 + 2), i // 2 * (SIDE // 2 + 2)))
    return square
