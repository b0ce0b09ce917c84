"""Text on pictures in any language: in Pillow's own font, else in a system font, else romanised."""

from __future__ import annotations

import unicodedata
from functools import cache

from PIL import ImageDraw, ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
SYSTEM_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKjp-Regular.otf", "NotoSerifCJK-Regular.ttc", "NotoSerifCJK-Bold.ttc"),
    *("SourceHanSans-Regular.ttc", "DroidSansFallbackFull.ttf", "wqy-microhei.ttc", "wqy-zenhei.ttc"),
    *("ipag.ttf", "ipagp.ttf", "TakaoPGothic.ttf", "NanumGothic.ttf", "unifont.otf"),
    *("YuGothM.ttc", "meiryo.ttc", "msgothic.ttc", "msyh.ttc", "malgun.ttf", "arialuni.ttf"),  # Windows
    *("Hiragino Sans GB.ttc", "ヒラギノ角ゴシック W3.ttc", "AppleSDGothicNeo.ttc", "Arial Unicode.ttf"),  # macOS
    *("NotoSans-Regular.ttf", "DejaVuSans.ttf", "arial.ttf"),
)
"""Fonts that Pillow finds by name, those with most letters first. The pack ships none: they weigh megabytes."""


def put(
    pen: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    size: float,
    fill: tuple[int, int, int] | str,
    width: float,
) -> None:
    """Draw one line of text, cut off at `width` pixels. size: of the letters, in pixels."""
    said, font = legible(text, size)
    if font.getlength(said) > width:
        while said and font.getlength(f"{said}...") > width:
            said = said[:-1]
        said = f"{said}..."
    pen.text(corner, said, fill, font)


def wrapped(text: str, size: float, width: float) -> list[str]:
    """Break the text into lines of at most `width` pixels, at spaces, and inside words longer than a line."""
    said, font = legible(text, size)
    lines: list[str] = []
    for word in said.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def legible(text: str, size: float) -> tuple[str, Font]:
    """The text with a font that has its letters, or romanised with Pillow's own font if there is none."""
    own = ImageFont.load_default(size)
    missing = {letter for letter in text if not _has(own, letter)}
    if not missing:
        return text, own
    for name in _installed():
        font = ImageFont.truetype(name, size)
        if all(_has(font, letter) for letter in text):
            return text, font
    return "".join(letter if letter not in missing else _romanised(letter, own) for letter in text), own


@cache
def _installed() -> tuple[str, ...]:
    """The fonts that are installed on this system."""
    found = []
    for name in SYSTEM_FONTS:
        try:
            ImageFont.truetype(name, 12)
        except (OSError, ImportError):
            continue
        found.append(name)
    return tuple(found)


def _has(font: Font, letter: str) -> bool:
    """Whether the font has that letter, instead of a placeholder."""
    if letter.isspace():
        return True
    return bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))


def _romanised(letter: str, font: Font) -> str:
    """Romanise a letter by its parts (é is e), its name (ж is zhe, カ is ka), else its number (U+72AC)."""
    base = unicodedata.normalize("NFKD", letter)[0]
    if base != letter and _has(font, base):
        return base
    kind, _, name = unicodedata.name(letter, "").partition(" LETTER ")
    if kind and name:
        return name.removeprefix("SMALL ").lower()
    return f"U+{ord(letter):04X}"
