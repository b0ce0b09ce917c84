"""A bottle: 4 bodies x 4 caps x 3 necks x 3 labels x 4 patterns x 100 words x 1,038 colourings = 6.0e7."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..kind import PATTERN, Kind, colours, letters, shape
from ..pen import Pen
from ..shapes import arc, both, box, disc, path, polygon
from .label import LABELS, paint_label

if TYPE_CHECKING:
    from ..individual import Individual
    from ..view import View

NECK = ((-9, -34), (9, -34), (9, -22))
BODIES = {
    "straight": polygon(*NECK, (28, -6), (28, 47), (-28, 47), (-28, -6), (-9, -22), radius=5),
    "round": np.concatenate([path(*NECK[:2]), arc(0, 15, 35, 32, -75, 255)]),
    "cone": polygon(*NECK, (38, 47), (-38, 47), (-9, -22), radius=5),
    "waisted": polygon(
        *NECK, (30, -18), (22, 18), (34, 47), (-34, 47), (-22, 18), (-30, -18), (-9, -22), radius=6
    ),
}  # fmt: skip
LABEL_Y = 20.0

KIND = Kind(
    "bottle",
    (
        shape("body", *BODIES),
        shape("cap", "cork", "screw", "ball", "spray"),
        shape("neck", "plain", "ring", "bow"),
        shape("label", *LABELS),
        *colours("glass", "cap", "label"),
        PATTERN,
        *letters(2),
    ),
)


def paint(pen: Pen, it: Individual, view: View) -> None:
    _cap(pen, it["cap"], it["cap colour"])
    pen.patterned(BODIES[it["body"]], it["glass colour"], it["pattern"], it["cap colour"])
    _neck(pen, it["neck"], it["cap colour"])
    paint_label(pen, it["label"], it.text, 0, LABEL_Y, it["label colour"])


def _cap(pen: Pen, kind: str, colour: str) -> None:
    if kind == "cork":
        pen.part(polygon((-9, -49), (9, -49), (5, -30), (-5, -30)), colour)
    elif kind == "screw":
        pen.part(box(0, -39, 28, 15, 2), colour)
    elif kind == "ball":
        pen.part(disc(0, -37, 12), colour)
    else:
        pen.part(polygon((-14, -49), (14, -49), (26, -43), (14, -39), (-14, -39)), colour)
        pen.part(box(0, -36, 9, 9), colour)


def _neck(pen: Pen, kind: str, colour: str) -> None:
    if kind == "ring":
        pen.part(box(0, -24, 28, 9, 4), colour)
    elif kind == "bow":
        for loop in both(path((0, -22), (20, -31), (20, -12))):
            pen.part(loop, colour)
        pen.part(disc(0, -22, 5), colour)
