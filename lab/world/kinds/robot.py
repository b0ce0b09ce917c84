"""A robot: 4 bodies x 4 heads x 4 tops x 4 eyes x 4 legs x 4 patterns x 10 letters x 7,248 colourings = 3.0e8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..kind import PATTERN, Kind, colours, letters, shape
from ..palette import INK
from ..pen import Pen
from ..shapes import arc, both, box, disc, limb, path, polygon

if TYPE_CHECKING:
    from ..individual import Individual
    from ..view import View

BODIES = {
    "square": box(0, 12, 54, 38, 4),
    "round": arc(0, 12, 30, 20),
    "cone": polygon((-19, -7), (19, -7), (33, 31), (-33, 31), radius=4),
    "funnel": polygon((-33, -7), (33, -7), (19, 31), (-19, 31), radius=4),
}
HEADS = {
    "square": box(0, -20, 36, 28, 3),
    "round": arc(0, -20, 18, 16),
    "triangle": polygon((0, -41), (25, -6), (-25, -6), radius=3),
    "wide": box(0, -18, 56, 22, 10),
}
CROWN_Y = {"square": -33.0, "round": -35.0, "triangle": -33.0, "wide": -28.0}  # where the top stands
ARMS = {"with its arms up": 58.0, "with its arms down": -55.0}  # degrees above the horizontal

KIND = Kind(
    "robot",
    (
        shape("body", *BODIES),
        shape("head", *HEADS),
        shape("top", "none", "antenna", "horns", "crown"),
        shape("eyes", "two", "one", "visor", "square"),
        shape("legs", "legs", "wheels", "track", "skirt"),
        *colours("body", "head", "limb", "plate"),
        PATTERN,
        *letters(1),
    ),
    tuple(ARMS),
)


def paint(pen: Pen, it: Individual, view: View) -> None:
    _legs(pen, it["legs"], it["limb colour"])
    for side, jitter in ((-1, view.limbs[0]), (1, view.limbs[1])):
        arm = limb(24, 1, ARMS[view.pose] + jitter, 22) * (side, 1)
        pen.line(arm, 11, it["limb colour"])
        pen.part(disc(0, 0, 7) + arm[1], it["head colour"])
    _top(pen, it["top"], CROWN_Y[it["head"]], it["plate colour"])
    pen.patterned(BODIES[it["body"]], it["body colour"], it["pattern"], it["limb colour"])
    pen.part(HEADS[it["head"]], it["head colour"])
    _eyes(pen, it["eyes"], -16 if it["head"] == "triangle" else -19, it["plate colour"])
    pen.part(box(0, 12, 25, 31, 4), it["plate colour"])
    pen.word(it["letter"], 0, 12, 23, it["plate colour"])


def _legs(pen: Pen, kind: str, colour: str) -> None:
    if kind == "legs":
        for leg in both(box(13, 37, 12, 20, 2)):
            pen.part(leg, colour)
    elif kind == "wheels":
        for x in (-15, 15):
            pen.part(disc(x, 37, 11), colour)
            pen.part(disc(x, 37, 4), INK)
    elif kind == "track":
        pen.part(box(0, 38, 62, 18, 9), colour)
        for x in (-19, 0, 19):
            pen.part(disc(x, 38, 4.5), INK)
    else:
        pen.part(polygon((-12, 27), (12, 27), (28, 47), (-28, 47), radius=3), colour)


def _top(pen: Pen, kind: str, y: float, colour: str) -> None:
    if kind == "antenna":
        pen.line(path((0, y), (0, y - 8)), 4, INK, outlined=False)
        pen.part(disc(0, y - 7, 8), colour)
    elif kind == "horns":
        for horn in both(polygon((3, y + 3), (18, y + 7), (22, y - 14))):
            pen.part(horn, colour)
    elif kind == "crown":
        low, high = y + 5, y - 13
        pen.part(path((-15, low), (-17, high), (-7, y - 4), (0, high), (7, y - 4), (17, high), (15, low)), colour)


def _eyes(pen: Pen, kind: str, y: float, colour: str) -> None:
    if kind == "two":
        for x in (-8.5, 8.5):
            pen.eye(x, y, 7, "white")
    elif kind == "one":
        pen.eye(0, y, 10, "white")
    elif kind == "visor":
        pen.part(box(0, y, 32, 11, 3), INK)
        for x in (-7, 7):
            pen.part(disc(x, y, 3.4), colour, line=0)
    else:
        for x in (-8.5, 8.5):
            pen.part(box(x, y, 12, 12), colour)
