"""A car from its side: 4 bodies x 3 wheels x 4 roofs x 3 ends x 4 patterns x 100 words x 7,248 colourings = 4.2e8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..kind import PATTERN, Kind, colours, letters, shape
from ..palette import INK
from ..pen import Pen
from ..shapes import Points, arc, box, disc, path, polygon, star
from .label import paint_label

if TYPE_CHECKING:
    from ..individual import Individual
    from ..view import View

GLASS = (206, 234, 246)
LIGHT = (255, 240, 170)


def _quarter(x: float, start: float) -> Points:
    return np.concatenate([arc(x, -5, 26, 20, start, start + 90), path((x, -5))])


CABINS = {  # drawn to the right: the bonnet is there
    "saloon": polygon((-24, -28), (14, -28), (28, -2), (-36, -2), radius=5),
    "van": polygon((-46, -30), (30, -30), (40, -2), (-46, -2), radius=4),
    "bubble": arc(-2, 0, 38, 32, 180, 360),
    "truck": polygon((2, -30), (28, -30), (36, -2), (2, -2), radius=4),
}
WINDOWS = {
    "saloon": (polygon((-19, -22), (-6, -22), (-6, -5), (-27, -5)), polygon((0, -22), (11, -22), (20, -5), (0, -5))),
    "van": (box(-31, -15, 18, 17), box(-8, -15, 18, 17), polygon((8, -23.5), (26, -23.5), (32, -6.5), (8, -6.5))),
    "bubble": (_quarter(-5, 180), _quarter(1, 270)),
    "truck": (polygon((8, -24), (24, -24), (30, -5), (8, -5)),),
}
ROOF = {"saloon": (-5.0, -28.0), "van": (-8.0, -30.0), "bubble": (-2.0, -31.0), "truck": (15.0, -30.0)}
HULLS = {
    "round": polygon((-47, -5), (47, -5), (47, 28), (-47, 28), radius=14),
    "square": polygon((-47, -5), (47, -5), (47, 28), (-47, 28), radius=2),
    "sloped": polygon((-47, -5), (28, -5), (48, 10), (48, 28), (-47, 28), radius=2),
}

KIND = Kind(
    "car",
    (
        shape("body", *CABINS),
        shape("wheels", "hub", "spokes", "star"),
        shape("roof", "none", "siren", "box", "fin"),
        shape("front", *HULLS),
        *colours("body", "cabin", "wheel", "plate"),
        PATTERN,
        *letters(2),
    ),
)


def paint(pen: Pen, it: Individual, view: View) -> None:
    _roof(pen, it["roof"], *ROOF[it["body"]], it["plate colour"])
    pen.part(CABINS[it["body"]], it["cabin colour"])
    for window in WINDOWS[it["body"]]:
        pen.part(window, GLASS)
    pen.patterned(HULLS[it["front"]], it["body colour"], it["pattern"], it["wheel colour"])
    pen.part(disc(42, 14, 4.5), LIGHT)
    for x in (-32, 32):
        _wheel(pen, it["wheels"], x, it["wheel colour"])
    paint_label(pen, "square", it.text, 0, 10, it["plate colour"])


def _roof(pen: Pen, kind: str, x: float, y: float, colour: str) -> None:
    if kind == "siren":
        pen.part(arc(x, y + 1, 12, 16, 180, 360), colour)
    elif kind == "box":
        pen.part(box(x, y - 4, 30, 12), colour)
    elif kind == "fin":
        pen.part(path((x - 17, y - 17), (x - 17, y + 3), (x + 14, y + 3)), colour)


def _wheel(pen: Pen, kind: str, x: float, colour: str) -> None:
    pen.part(disc(x, 32, 13), INK)
    if kind == "hub":
        pen.part(disc(x, 32, 7), colour, line=0)
    elif kind == "spokes":
        pen.part(disc(x, 32, 10), colour, line=0)
        for turn in (-7, 7):
            pen.line(path((x - 7, 32 - turn), (x + 7, 32 + turn)), 3.5, INK, outlined=False)
    else:
        pen.part(star(x, 32, 12.5, inner=0.4), colour, line=0)
