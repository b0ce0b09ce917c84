"""A house: 4 roofs x 4 windows x 3 doors x 4 tops x 3 walls x 4 patterns x 10 numbers x 7,248 colourings = 1.7e8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..kind import PATTERN, Kind, colours, letters, shape
from ..palette import INK
from ..pen import Pen
from ..shapes import Points, arc, box, disc, path, polygon

if TYPE_CHECKING:
    from ..individual import Individual
    from ..view import View

WALLS = {
    "straight": box(0, 18, 72, 56, 1),
    "flared": polygon((-32, -10), (32, -10), (45, 46), (-45, 46), radius=2),
    "bulging": polygon((-32, -10), (32, -10), (46, 14), (36, 46), (-36, 46), (-46, 14), radius=5),
}
ROOFS = {
    "gable": path((0, -44), (46, -8), (-46, -8)),
    "hip": path((-22, -38), (22, -38), (45, -8), (-45, -8)),
    "dome": arc(0, -8, 42, 34, 180, 360),
    "castle": path(
        (-44, -8), (-44, -38), (-27, -38), (-27, -29), (-9, -29), (-9, -38),
        (9, -38), (9, -29), (27, -29), (27, -38), (44, -38), (44, -8),
    ),
}  # fmt: skip
WINDOWS = {
    "square": box(0, 0, 17, 17),
    "round": disc(0, 0, 9.5),
    "arched": np.concatenate([arc(0, -1, 8.5, 9, 180, 360), path((8.5, 9), (-8.5, 9))]),
    "diamond": path((0, -12), (12, 0), (0, 12), (-12, 0)),
}
DOOR_X, SIGN_X, TOP_X = -17.0, 17.0, 22.0
DOORS = {
    "square": box(DOOR_X, 33, 24, 26),
    "arched": np.concatenate([arc(DOOR_X, 32, 12, 14, 180, 360), path((DOOR_X + 12, 46), (DOOR_X - 12, 46))]),
    "round": disc(DOOR_X, 32, 14),
}
DOOR_OPEN, DOOR_CLOSED = "with its door open", "with its door closed"

KIND = Kind(
    "house",
    (
        shape("walls", *WALLS),
        shape("roof", *ROOFS),
        shape("windows", *WINDOWS),
        shape("door", *DOORS),
        shape("top", "none", "chimney", "flag", "ball"),
        *colours("wall", "roof", "window", "door"),
        PATTERN,
        *letters(1),
    ),
    (DOOR_OPEN, DOOR_CLOSED),
)


def paint(pen: Pen, it: Individual, view: View) -> None:
    _top(pen, it["top"], it["door colour"])
    pen.part(WALLS[it["walls"]], it["wall colour"])
    pen.patterned(ROOFS[it["roof"]], it["roof colour"], it["pattern"], it["window colour"])
    for x in (-17, 17):
        pen.part(WINDOWS[it["windows"]] + (x, 6), it["window colour"])
    _door(pen, DOORS[it["door"]], view.pose == DOOR_OPEN, it["door colour"])
    pen.part(box(SIGN_X, 32, 25, 26, 2), it["door colour"])
    pen.word(it["letter"], SIGN_X, 32, 20.5, it["door colour"])


def _door(pen: Pen, doorway: Points, opened: bool, colour: str) -> None:
    if not opened:
        pen.part(doorway, colour)
        pen.part(disc(DOOR_X + 7, 34, 2.2), INK, line=0)
        return
    pen.part(doorway, INK)
    hinge = DOOR_X - 12
    pen.part((doorway - (hinge, 33)) * (-0.55, 1.06) + (hinge, 34), colour)


def _top(pen: Pen, kind: str, colour: str) -> None:
    if kind == "chimney":
        pen.part(box(TOP_X, -30, 14, 36), colour)
    elif kind == "flag":
        pen.line(path((TOP_X, -20), (TOP_X, -48)), 3, INK, outlined=False)
        pen.part(path((TOP_X, -49), (TOP_X + 26, -40), (TOP_X, -31)), colour)
    elif kind == "ball":
        pen.line(path((0, -30), (0, -40)), 5, INK, outlined=False)
        pen.part(disc(0, -41, 8.5), colour)
