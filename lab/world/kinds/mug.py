"""A mug: 4 bodies x 4 handles x 4 tops x 3 bases x 4 patterns x 100 words x 7,248 colourings = 5.6e8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..kind import PATTERN, Kind, colours, letters, shape
from ..palette import PAPER
from ..pen import Pen
from ..shapes import arc, box, disc, path, polygon
from .label import paint_label

if TYPE_CHECKING:
    from ..individual import Individual
    from ..view import View

X = -7  # the body's axis: the handle is to the right
BODIES = {
    "straight": box(X, 5, 60, 66, 5),
    "bowl": polygon((-39, -28), (25, -28), (23, 12), (6, 38), (-20, 38), (-37, 12), radius=6),
    "flared": polygon((-43, -28), (29, -28), (15, 38), (-29, 38), radius=4),
    "wide": polygon((-29, -28), (15, -28), (29, 38), (-43, 38), radius=4),
}
HANDLES = {
    "round": arc(21, 4, 20, 17, -90, 90),
    "square": path((20, -14), (42, -14), (42, 22), (20, 22)),
    "pointed": path((18, -16), (43, 2), (18, 22)),
    "hook": path((18, -12), (42, -12), (42, 10)),
}
RIMS = {"straight": 66, "bowl": 70, "flared": 78, "wide": 50}  # widths

KIND = Kind(
    "mug",
    (
        shape("body", *BODIES),
        shape("handle", *HANDLES),
        shape("top", "none", "cream", "straw", "lid"),
        shape("base", "none", "saucer", "feet"),
        *colours("body", "handle", "label", "top"),
        PATTERN,
        *letters(2),
    ),
)


def paint(pen: Pen, it: Individual, view: View) -> None:
    _base(pen, it["base"], it["top colour"])
    pen.line(HANDLES[it["handle"]], 12, it["handle colour"])
    _top(pen, it["top"], it["top colour"])
    pen.patterned(BODIES[it["body"]], it["body colour"], it["pattern"], it["handle colour"])
    pen.part(box(X, -27, RIMS[it["body"]], 9, 4), it["top colour"])
    paint_label(pen, "square", it.text, X, 7, it["label colour"])


def _base(pen: Pen, kind: str, colour: str) -> None:
    if kind == "saucer":
        pen.part(polygon((-48, 36), (34, 36), (22, 47), (-36, 47), radius=4), colour)
    elif kind == "feet":
        for x in (X - 16, X + 16):
            pen.part(disc(x, 40, 7), colour)


def _top(pen: Pen, kind: str, colour: str) -> None:
    if kind == "cream":
        for x, y in ((X - 15, -32), (X + 15, -32), (X, -38)):
            pen.part(disc(x, y, 10), PAPER)
    elif kind == "straw":
        pen.line(path((X - 2, -28), (X + 8, -46), (X + 20, -46)), 8, colour)
    elif kind == "lid":
        pen.part(arc(X, -28, 24, 12, 180, 360), colour)
        pen.part(disc(X, -42, 5.5), colour)
