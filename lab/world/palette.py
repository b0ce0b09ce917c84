"""The colours of the world: few and far apart, so that each can be named after an autoencoder and in any light."""

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (216, 36, 44),
    "orange": (250, 138, 26),
    "yellow": (255, 222, 58),
    "green": (44, 156, 66),
    "cyan": (96, 214, 226),
    "blue": (38, 76, 208),
    "purple": (128, 58, 172),
    "pink": (250, 150, 194),
    "brown": (122, 74, 42),
    "grey": (142, 146, 154),
    "white": (248, 248, 246),
    "black": (50, 50, 58),
}
INK: Colour = (34, 32, 42)  # outlines, pupils, dark letters
PAPER: Colour = (250, 250, 248)  # eyes, teeth, light letters


def rgb(colour: str | Colour) -> Colour:
    return COLOURS[colour] if isinstance(colour, str) else colour


def contrast(colour: str | Colour) -> Colour:
    """Ink or paper: what reads better on `colour` (Rec. 601 luma)."""
    r, g, b = rgb(colour)
    return INK if 0.299 * r + 0.587 * g + 0.114 * b > 115 else PAPER
