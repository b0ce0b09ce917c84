"""Outlines as arrays of points [n, 2]: x to the right, y down, the subject's box is -50..50 on both axes."""

from collections.abc import Sequence

import numpy as np

Points = np.ndarray


def polygon(*points: tuple[float, float], radius: float = 0) -> Points:
    """A polygon whose corners are rounded by quadratic curves that begin `radius` before each corner."""
    corners = np.array(points, float)
    if not radius:
        return corners
    t = np.linspace(0, 1, 6)[:, None]
    parts = []
    for before, corner, after in zip(np.roll(corners, 1, 0), corners, np.roll(corners, -1, 0), strict=True):
        start, end = _towards(corner, before, radius), _towards(corner, after, radius)
        parts.append((1 - t) ** 2 * start + 2 * t * (1 - t) * corner + t**2 * end)
    return np.concatenate(parts)


def _towards(a: Points, b: Points, distance: float) -> Points:
    length = float(np.hypot(*(b - a)))
    return a + (b - a) * min(0.5, distance / length)


def box(x: float, y: float, width: float, height: float, radius: float = 0) -> Points:
    """A rectangle centred on (x, y)."""
    w, h = width / 2, height / 2
    return polygon((x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h), radius=radius)


def arc(x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360) -> Points:
    """Part of an ellipse centred on (x, y); degrees, clockwise from the right."""
    angle = np.radians(np.linspace(start, end, 33))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1)


def disc(x: float, y: float, radius: float) -> Points:
    return arc(x, y, radius, radius)


def star(x: float, y: float, radius: float, points: int = 5, inner: float = 0.45) -> Points:
    angle = np.arange(2 * points) * np.pi / points
    r = radius * np.where(np.arange(2 * points) % 2, inner, 1)
    return np.stack([x + r * np.sin(angle), y - r * np.cos(angle)], 1)


def flipped(points: Points) -> Points:
    """Mirrored about the subject's axis."""
    return points * (-1, 1)


def both(points: Points) -> tuple[Points, Points]:
    """A part and its mirror image."""
    return points, flipped(points)


def moved(points: Points, x: float, y: float, scale: float = 1) -> Points:
    return points * scale + (x, y)


def limb(x: float, y: float, angle: float, length: float) -> Points:
    """Two points: a joint at (x, y) and the end `length` away, `angle` degrees above the horizontal, to the right."""
    a = np.radians(angle)
    return np.array([(x, y), (x + length * np.cos(a), y - length * np.sin(a))])


def path(*points: Sequence[float]) -> Points:
    return np.array(points, float)
