"""A monster: 4 bodies x 3 eyes x 4 mouths x 4 tops x 3 feet x 4 patterns x 6 logos x 7,248 colourings = 1.0e8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..kind import LOGO, PATTERN, Kind, colours, shape
from ..palette import INK, PAPER
from ..pen import Pen
from ..shapes import arc, both, box, disc, limb, path, polygon

if TYPE_CHECKING:
    from ..individual import Individual
    from ..view import View

BODIES = {
    "egg": arc(0, 3, 31, 38),
    "box": box(0, 3, 58, 76, 9),
    "cone": polygon((-12, -37), (12, -37), (38, 41), (-38, 41), radius=8),
    "bulb": polygon((-36, -37), (36, -37), (36, 0), (22, 10), (22, 41), (-22, 41), (-22, 10), (-36, 0), radius=12),
}
ARMS = {"with its arms up": 52.0, "with its arms down": -50.0}
MOUTH = (150, 24, 44)

KIND = Kind(
    "monster",
    (
        shape("body", *BODIES),
        shape("eyes", "one", "two", "three"),
        shape("mouth", "smile", "fangs", "round", "teeth"),
        shape("top", "horns", "ears", "spikes", "none"),
        shape("feet", "two", "many", "slug"),
        *colours("body", "pattern", "belly", "horn"),
        PATTERN,
        LOGO,
    ),
    tuple(ARMS),
)


def paint(pen: Pen, it: Individual, view: View) -> None:
    _feet(pen, it["feet"], it["pattern colour"])
    for side, jitter in ((-1, view.limbs[0]), (1, view.limbs[1])):
        arm = limb(24, 10, ARMS[view.pose] + jitter, 24) * (side, 1)
        pen.line(arm, 13, it["pattern colour"])
    _top(pen, it["top"], it["body"], it["horn colour"])
    pen.patterned(BODIES[it["body"]], it["body colour"], it["pattern"], it["pattern colour"])
    _eyes(pen, it["eyes"])
    _mouth(pen, it["mouth"])
    pen.part(disc(0, 24, 15), it["belly colour"])
    pen.logo(it["logo"], 0, 24, 22, it["horn colour"])


def _feet(pen: Pen, kind: str, colour: str) -> None:
    if kind == "two":
        for foot in both(arc(14, 41, 12, 7)):
            pen.part(foot, colour)
    elif kind == "many":
        for x in (-21, -7, 7, 21):
            pen.part(box(x, 40, 10, 16, 4), colour)
    else:
        pen.part(arc(0, 47, 40, 15, 180, 360), colour)


def _top(pen: Pen, kind: str, body: str, colour: str) -> None:
    x = 9 if body == "cone" else 20
    if kind == "horns":
        for horn in both(path((x - 9, -28), (x + 8, -22), (x + 12, -49))):
            pen.part(horn, colour)
    elif kind == "ears":
        for ear in both(disc(x + 4, -34, 11)):
            pen.part(ear, colour)
    elif kind == "spikes":
        pen.part(path((-17, -28), (-16, -45), (-7, -36), (0, -49), (7, -36), (16, -45), (17, -28)), colour)


def _eyes(pen: Pen, kind: str) -> None:
    if kind == "one":
        pen.eye(0, -19, 11, PAPER)
    elif kind == "two":
        for x in (-9, 9):
            pen.eye(x, -19, 8, PAPER)
    else:
        for x, y in ((-13, -15), (13, -15), (0, -24)):
            pen.eye(x, y, 7, PAPER)


def _mouth(pen: Pen, kind: str) -> None:
    if kind == "smile":
        pen.line(path((-12, -3), (-6, 2), (6, 2), (12, -3)), 4, INK, outlined=False)
    elif kind == "fangs":
        pen.part(box(0, -1, 26, 8, 3), MOUTH)
        for fang in both(path((3, -4), (10, -4), (6.5, 6))):
            pen.part(fang, PAPER, line=1)
    elif kind == "round":
        pen.part(arc(0, 0, 7, 7), MOUTH)
    else:
        pen.part(box(0, 0, 30, 10, 2), PAPER)
        for x in (-7, 0, 7):
            pen.line(path((x, -4), (x, 4)), 2, INK, outlined=False)
