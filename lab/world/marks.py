"""What is printed on things: letters and digits of our own strokes, and logos."""

import numpy as np

from .shapes import Points, arc, path, polygon, star

STROKE = 0.24  # of the height of a letter's centre lines
WIDTH = 0.64  # likewise

# Centre lines in a box of WIDTH x 1.
STROKES: dict[str, tuple[Points, ...]] = {
    "A": (path((0, 1), (0.32, 0), (0.64, 1)), path((0.13, 0.66), (0.51, 0.66))),
    "C": (arc(0.36, 0.5, 0.36, 0.5, -48, -312),),
    "E": (path((0.6, 0), (0, 0), (0, 1), (0.6, 1)), path((0, 0.5), (0.5, 0.5))),
    "H": (path((0, 0), (0, 1)), path((0.64, 0), (0.64, 1)), path((0, 0.5), (0.64, 0.5))),
    "L": (path((0.05, 0), (0.05, 1), (0.64, 1)),),
    "T": (path((-0.03, 0), (0.67, 0)), path((0.32, 0), (0.32, 1))),
    "U": (np.concatenate([path((0, 0)), arc(0.32, 0.68, 0.32, 0.32, 180, 0), path((0.64, 0))]),),
    "X": (path((0, 0), (0.64, 1)), path((0.64, 0), (0, 1))),
    "3": (np.concatenate([arc(0.3, 0.25, 0.3, 0.25, -160, 90), arc(0.3, 0.75, 0.34, 0.25, -90, 160)]),),
    "4": (path((0.64, 0.7), (-0.04, 0.7), (0.42, 0), (0.42, 1)),),
}
GLYPHS = "".join(STROKES)

# Outlines in a box of 1 x 1 around the origin.
LOGOS: dict[str, Points] = {
    "star": star(0, 0.03, 0.56),
    "heart": np.concatenate(
        [arc(-0.24, -0.18, 0.25, 0.25, 150, 350), arc(0.24, -0.18, 0.25, 0.25, 190, 390), path((0, 0.5))]
    ),
    "bolt": path((0.14, -0.54), (-0.34, 0.1), (-0.04, 0.1), (-0.16, 0.54), (0.34, -0.14), (0.04, -0.14)),
    "moon": np.concatenate([arc(0, 0, 0.5, 0.5, -65, -295), arc(0.24, 0, 0.38, 0.42, -245, -115)]),
    "cross": polygon(
        (-0.17, -0.5), (0.17, -0.5), (0.17, -0.17), (0.5, -0.17), (0.5, 0.17), (0.17, 0.17),
        (0.17, 0.5), (-0.17, 0.5), (-0.17, 0.17), (-0.5, 0.17), (-0.5, -0.17), (-0.17, -0.17),
    ),
    "drop": np.concatenate([arc(0, 0.16, 0.36, 0.36, -30, 210), path((0, -0.56))]),
}  # fmt: skip
