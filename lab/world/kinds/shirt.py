"""A shirt: 3 sleeves x 4 necks x 4 hems x 3 labels x 4 patterns x 100 words x 7,248 colourings = 4.2e8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..kind import PATTERN, Kind, colours, letters, shape
from ..palette import INK
from ..pen import Pen
from ..shapes import arc, both, disc, moved, path, polygon
from .label import LABELS, paint_label

if TYPE_CHECKING:
    from ..individual import Individual
    from ..view import View

SHOULDERS = ((-23, 30), (-23, -20), (-26, -30), (-13, -38), (13, -38), (26, -30), (23, -20), (23, 30))
HEMS = {
    "straight": ((23, 45), (-23, 45)),
    "curved": ((22, 37), (15, 44), (0, 48), (-15, 44), (-22, 37)),
    "zigzag": ((25, 47), (16, 34), (8, 47), (0, 34), (-8, 47), (-16, 34), (-25, 47)),
    "skirt": ((37, 46), (-37, 46)),
}
SLEEVES = {  # from the shoulder to the right
    "short": polygon((-4, -10), (20, -12), (20, 12), (-4, 10), radius=2),
    "long": polygon((-4, -9), (31, -8), (31, 8), (-4, 9), radius=2),
    "puffed": arc(10, 0, 15, 14),
}
ANGLES = {"with its sleeves up": 22.0, "with its sleeves down": -62.0}

KIND = Kind(
    "shirt",
    (
        shape("sleeves", *SLEEVES),
        shape("neck", "round", "pointed", "collar", "tie"),
        shape("hem", *HEMS),
        shape("label", *LABELS),
        *colours("body", "sleeve", "neck", "label"),
        PATTERN,
        *letters(2),
    ),
    tuple(ANGLES),
)


def paint(pen: Pen, it: Individual, view: View) -> None:
    for side, jitter in ((-1, view.limbs[0]), (1, view.limbs[1])):
        angle = ANGLES[view.pose] + jitter / 2
        sleeve = moved(SLEEVES[it["sleeves"]], 18 * side, -25)
        degrees = -angle if side > 0 else 180 + angle
        pen.turned(degrees, 18 * side, -25).part(sleeve, it["sleeve colour"])
    torso = path(*SHOULDERS, *HEMS[it["hem"]])
    pen.patterned(torso, it["body colour"], it["pattern"], it["neck colour"])
    paint_label(pen, it["label"], it.text, 0, 6, it["label colour"])
    _neck(pen, it["neck"], it["neck colour"])


def _neck(pen: Pen, kind: str, colour: str) -> None:
    if kind == "round":
        pen.part(arc(0, -38, 15, 14, 0, 180), colour)
        pen.part(arc(0, -38, 8, 7, 0, 180), INK, line=0)
    elif kind == "pointed":
        pen.part(path((-15, -38), (15, -38), (0, -14)), colour)
        pen.part(path((-8, -38), (8, -38), (0, -26)), INK, line=0)
    elif kind == "collar":
        for flap in both(path((0, -36), (13, -43), (24, -27), (10, -17))):
            pen.part(flap, colour)
    else:
        for loop in both(path((0, -27), (20, -37), (20, -17))):
            pen.part(loop, colour)
        pen.part(disc(0, -27, 6), colour)
