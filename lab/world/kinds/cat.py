"""A cat: 3 heads x 4 ears x 4 eyes x 3 bodies x 4 tails x 4 collars x 4 patterns x 7,248 colourings = 6.7e7."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..kind import PATTERN, Kind, colours, shape
from ..palette import INK, PAPER
from ..pen import Pen
from ..shapes import arc, both, box, disc, limb, path, polygon, star

if TYPE_CHECKING:
    from ..individual import Individual
    from ..view import View

HEADS = {
    "round": arc(0, -15, 28, 22),
    "square": box(0, -15, 54, 42, 5),
    "heart": polygon((-35, -33), (35, -33), (12, 8), (-12, 8), radius=8),
}
EARS = {
    "pointed": path((5, -30), (27, -22), (25, -48)),
    "round": disc(22, -35, 11),
    "folded": path((8, -33), (26, -40), (42, -20), (24, -24)),
    "tall": polygon((8, -30), (22, -28), (22, -49), (11, -49), radius=5),
}
BODIES = {
    "round": arc(0, 25, 26, 22),
    "slim": box(0, 25, 38, 42, 8),
    "pear": polygon((-12, 4), (12, 4), (32, 46), (-32, 46), radius=7),
}
TAILS = {
    "curl": arc(32, 22, 9, 11, 160, -150),
    "straight": path((14, 40), (42, 14)),
    "bushy": path((14, 40), (33, 34)),
    "crooked": path((14, 41), (30, 41), (30, 24), (43, 24)),
}
PAWS = {"with its paws up": 35.0, "with its paws down": -72.0}

KIND = Kind(
    "cat",
    (
        shape("head", *HEADS),
        shape("ears", *EARS),
        shape("eyes", "round", "sleepy", "star", "glasses"),
        shape("body", *BODIES),
        shape("tail", *TAILS),
        shape("collar", "plain", "bow", "bell", "scarf"),
        *colours("fur", "marking", "paw", "collar"),
        PATTERN,
    ),
    tuple(PAWS),
)


def paint(pen: Pen, it: Individual, view: View) -> None:
    paw = it["paw colour"]
    pen.line(TAILS[it["tail"]], 10, paw)
    if it["tail"] == "bushy":
        pen.part(arc(36, 30, 11, 15), paw)
    pen.patterned(BODIES[it["body"]], it["fur colour"], it["pattern"], it["marking colour"])
    for side, jitter in ((-1, view.limbs[0]), (1, view.limbs[1])):
        pen.line(limb(22, 13, PAWS[view.pose] + jitter, 20) * (side, 1), 12, paw)
    for foot in both(arc(13, 42, 11, 6)):
        pen.part(foot, paw)
    for ear in both(EARS[it["ears"]]):
        pen.part(ear, it["marking colour"])
    _collar(pen, it["collar"], it["collar colour"])
    pen.part(HEADS[it["head"]], it["fur colour"])
    _eyes(pen, it["eyes"], it["collar colour"])
    pen.part(path((-6, -9), (6, -9), (0, -2)), it["collar colour"], line=1.6)
    pen.line(path((-9, 0), (-5, 3), (0, -1), (5, 3), (9, 0)), 2.4, INK, outlined=False)


def _eyes(pen: Pen, kind: str, colour: str) -> None:
    for x in (-12, 12):
        if kind == "round":
            pen.eye(x, -17, 8, PAPER)
        elif kind == "sleepy":
            pen.part(arc(x, -19, 9, 9, 0, 180), PAPER)
            pen.part(arc(x, -19, 4, 6, 0, 180), INK, line=0)
        elif kind == "star":
            pen.part(star(x, -17, 10), PAPER, line=1.8)
        else:
            pen.part(box(x, -17, 20, 15, 4), INK)
            pen.part(box(x, -17, 13, 8, 2), colour, line=0)


def _collar(pen: Pen, kind: str, colour: str) -> None:
    pen.part(box(0, 9, 36, 10, 4), colour)
    if kind == "bow":
        for loop in both(path((0, 13), (17, 6), (17, 22))):
            pen.part(loop, colour)
        pen.part(disc(0, 14, 4.5), colour)
    elif kind == "bell":
        pen.part(disc(0, 18, 8), colour)
        pen.part(disc(0, 20, 2.5), INK, line=0)
    elif kind == "scarf":
        pen.part(polygon((-2, 10), (14, 10), (17, 34), (2, 34), radius=2), colour)
