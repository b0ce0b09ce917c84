"""The colours of the world: few and far apart, so that each can be named after an autoencoder and in any light."""

from collections.abc import Iterable
from itertools import combinations
from math import dist

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (208, 26, 40),
    "orange": (246, 126, 18),
    "yellow": (255, 226, 64),
    "green": (36, 150, 62),
    "cyan": (96, 214, 226),
    "blue": (36, 72, 214),
    "purple": (146, 56, 190),
    "pink": (250, 150, 194),
    "brown": (128, 82, 44),
    "grey": (136, 142, 152),
    "white": (248, 248, 246),
    "black": (44, 44, 52),
}
INK: Colour = (34, 32, 42)  # outlines, pupils, dark letters
PAPER: Colour = (250, 250, 248)  # eyes, teeth, light letters
FAR = 110  # the least distance in RGB of two colours of one individual


def far_apart(colours: Iterable[str]) -> bool:
    """Whether all of them can be told from each other side by side."""
    return all(dist(COLOURS[a], COLOURS[b]) >= FAR for a, b in combinations(colours, 2))


def rgb(colour: str | Colour) -> Colour:
    return COLOURS[colour] if isinstance(colour, str) else colour


def contrast(colour: str | Colour) -> Colour:
    """Ink or paper: what reads better on `colour` (Rec. 601 luma)."""
    r, g, b = rgb(colour)
    return INK if 0.299 * r + 0.587 * g + 0.114 * b > 115 else PAPER
