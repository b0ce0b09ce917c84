"""Labels that carry two letters."""

from ..pen import Pen
from ..shapes import arc, box, path

LABELS = {
    "square": box(0, 0, 43, 29, 3),
    "oval": arc(0, 0, 27, 18),
    "ticket": path((-19, -15), (19, -15), (28, 0), (19, 15), (-19, 15), (-28, 0)),
}


def paint_label(pen: Pen, shape: str, text: str, x: float, y: float, colour: str) -> None:
    pen.part(LABELS[shape] + (x, y), colour)
    pen.word(text, x, y, 22, colour)
