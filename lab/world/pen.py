"""A pen that draws outlined parts under an affine map: Pillow at SUPERSAMPLING times the size, then reduced.

All parts are polygons, so a tilt or a turn costs nothing and no picture is resampled (0.6 ms a subject at 128 px
where rotating the picture alone takes 3 ms, and resvg 4 ms, most of it PNG).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from .marks import LOGOS, STROKE, STROKES, WIDTH
from .palette import INK, Colour, contrast, rgb
from .shapes import Points, arc, box, disc

SUPERSAMPLING = 3
LINE = 2.2  # the outline's width, in hundredths of the subject's box
PERIOD = 16.0  # of patterns, likewise: a bar is half of it
PATTERNS = ("plain", "stripes", "dots", "checks")


@dataclass(frozen=True)
class Pen:
    image: Image.Image  # RGBA, SUPERSAMPLING times the size
    matrix: np.ndarray  # [2, 2]: from the subject's box to pixels of `image`
    offset: np.ndarray  # [2]

    def map(self, points: Points) -> list[tuple[float, float]]:
        return [(x, y) for x, y in (points @ self.matrix.T + self.offset).tolist()]

    @property
    def scale(self) -> float:
        return float(abs(np.linalg.det(self.matrix)) ** 0.5)

    @property
    def upright(self) -> Pen:
        """The same map without its mirroring, for text."""
        mirrored = np.linalg.det(self.matrix) < 0
        return Pen(self.image, self.matrix @ np.diag((-1.0, 1.0)) if mirrored else self.matrix, self.offset)

    def turned(self, degrees: float, x: float, y: float) -> Pen:
        """A pen turned clockwise about (x, y)."""
        a = np.radians(degrees)
        matrix = self.matrix @ np.array([(np.cos(a), -np.sin(a)), (np.sin(a), np.cos(a))])
        centre = np.array((x, y))
        return Pen(self.image, matrix, self.matrix @ centre + self.offset - matrix @ centre)

    def part(self, points: Points, fill: str | Colour, line: float = LINE) -> None:
        """A filled polygon with an outline inside it."""
        width = max(1, round(line * self.scale)) if line else 0
        ImageDraw.Draw(self.image).polygon(self.map(points), rgb(fill), INK if width else None, width)

    def patterned(self, points: Points, fill: str | Colour, pattern: str, colour: str | Colour) -> None:
        """A part with a printed pattern, clipped to it and centred on it."""
        self.part(points, fill)
        if pattern == "plain":
            return
        inside, printed = Image.new("L", self.image.size), Image.new("L", self.image.size)
        ImageDraw.Draw(inside).polygon(self.map(points), 255)
        pencil = ImageDraw.Draw(printed)
        for shape in _pattern(pattern, points):
            pencil.polygon(self.map(shape), 255)
        bounds = inside.getbbox()
        self.image.paste(rgb(colour), bounds, ImageChops.multiply(inside.crop(bounds), printed.crop(bounds)))
        ImageDraw.Draw(self.image).polygon(self.map(points), None, INK, max(1, round(LINE * self.scale)))

    def line(self, points: Points, width: float, fill: str | Colour, outlined: bool = True) -> None:
        """A round-ended line, `width` wide with its outline."""
        if outlined:
            self.line(points, width, INK, outlined=False)
            width -= 2 * LINE
        pixels, mapped, pencil = width * self.scale, self.map(points), ImageDraw.Draw(self.image)
        pencil.line(mapped, rgb(fill), round(pixels))
        for x, y in mapped:  # round ends and joints
            pencil.ellipse((x - pixels / 2, y - pixels / 2, x + pixels / 2, y + pixels / 2), rgb(fill))

    def eye(self, x: float, y: float, radius: float, fill: str | Colour) -> None:
        self.part(disc(x, y, radius), fill)
        self.part(disc(x, y, radius * 0.45), contrast(fill), line=0)

    def word(self, text: str, x: float, y: float, height: float, ground: str | Colour) -> None:
        """`text` centred on (x, y) in what reads best on `ground`; never mirrored."""
        pen, size = self.upright, height / (1 + STROKE)
        if pen.matrix is not self.matrix:
            x = -x
        step = (WIDTH + 2 * STROKE) * size
        left = x - (step * (len(text) - 1) + WIDTH * size) / 2
        for i, glyph in enumerate(text):
            for stroke in STROKES[glyph]:
                points = stroke * size + (left + i * step, y - size / 2)
                pen.line(points, STROKE * size, contrast(ground), outlined=False)

    def logo(self, name: str, x: float, y: float, height: float, fill: str | Colour) -> None:
        self.part(LOGOS[name] * height + (x, y), fill, line=1.6)


def _pattern(name: str, points: Points) -> list[Points]:
    """The printed shapes that cover the part, in its coordinates."""
    (left, top), (right, bottom) = points.min(0), points.max(0)
    x, y, half = (left + right) / 2, (top + bottom) / 2, PERIOD / 2
    columns = np.arange(-np.ceil((right - x) / half), np.ceil((right - x) / half) + 1)
    rows = np.arange(-np.ceil((bottom - y) / half), np.ceil((bottom - y) / half) + 1)
    if name == "stripes":
        return [box(x, y + half * r, right - left + 2, half) for r in rows if r % 2]
    even = [(x + half * c, y + half * r) for r in rows for c in columns if (r + c) % 2]
    if name == "checks":
        return [box(*centre, half, half) for centre in even]
    return [arc(*centre, 0.34 * PERIOD, 0.34 * PERIOD)[::3] for centre in _sparse(x, y, rows, columns)]


def _sparse(x: float, y: float, rows: np.ndarray, columns: np.ndarray) -> list[tuple[float, float]]:
    """Centres of dots: every second place of every second row, shifted by one from row to row."""
    return [
        (x + PERIOD / 2 * c, y + PERIOD * 0.44 * r)
        for r in rows for c in columns
        if r % 2 and (c + (r - 1) // 2) % 2
    ]  # fmt: skip
