"""Scenes painted behind the subjects: float arrays [side, width, 3] in 0..1, from a numpy generator."""

from collections.abc import Callable

import numpy as np

Scene = np.ndarray
Painter = Callable[[int, int, np.random.Generator], Scene]  # (side, width, rng)


def rows(side: int) -> np.ndarray:
    """[side, 1, 1] running 0 (top) to 1 (bottom)."""
    return np.linspace(0, 1, side, dtype=np.float32)[:, None, None]


def colour(*rgb: int) -> np.ndarray:
    return np.array(rgb, np.float32) / 255


def plain(rgb: tuple[int, int, int]) -> Painter:
    def paint(side: int, width: int, rng: np.random.Generator) -> Scene:
        shade = 1 - 0.06 * rng.random() * rows(side)
        return np.broadcast_to(colour(*rgb) * shade, (side, width, 3)).copy()

    return paint


def beach(side: int, width: int, rng: np.random.Generator) -> Scene:
    y, horizon, shore = rows(side), rng.uniform(0.25, 0.35), rng.uniform(0.5, 0.6)
    sea = np.where(y < horizon, colour(150, 210, 245), colour(30, 130, 190))
    foam = (y >= shore - 0.03) & (y < shore)
    picture = np.where(y < shore, np.where(foam, colour(225, 240, 245), sea), colour(238, 214, 160))
    return np.broadcast_to(picture, (side, width, 3)).copy()


def grass(side: int, width: int, rng: np.random.Generator) -> Scene:
    y, horizon = rows(side), rng.uniform(0.3, 0.4)
    ground = colour(86, 160, 60) * (1.15 - 0.3 * y)
    picture = np.broadcast_to(np.where(y < horizon, colour(170, 215, 250), ground), (side, width, 3)).copy()
    dot = max(1, side // 42)
    for top, left in rng.integers((int(side * horizon) + dot, 0), (side - dot, width - dot), (9 * width // side, 2)):
        picture[top : top + dot, left : left + dot] = colour(250, 235, 120)
    return picture


def snow(side: int, width: int, rng: np.random.Generator) -> Scene:
    y, x = rows(side), np.arange(width, dtype=np.float32)[None, :, None] / (side - 1)
    hill = rng.uniform(0.35, 0.5) + 0.05 * np.sin(2 * np.pi * (x + rng.random()))
    return np.where(y < hill, colour(165, 185, 210), colour(242, 246, 252)).astype(np.float32)


def night_sky(side: int, width: int, rng: np.random.Generator) -> Scene:
    picture = np.broadcast_to(colour(12, 16, 50) + colour(25, 25, 70) * rows(side), (side, width, 3)).copy()
    dot = max(1, side // 42)
    for top, left in rng.integers(0, (side - dot, width - dot), (12 * width // side, 2)):
        picture[top : top + dot, left : left + dot] = colour(255, 250, 210)
    return picture


def brick_wall(side: int, width: int, rng: np.random.Generator) -> Scene:
    height, length = side // 8, side // 4
    y, x = np.mgrid[:side, :width] + rng.integers(0, length)
    x = x + (y // height % 2) * (length // 2)
    joint = (y % height < side // 64) | (x % length < side // 64)
    shade = rng.uniform(0.88, 1.1, (64, 64)).astype(np.float32)[y // height % 64, x // length % 64]
    return np.where(joint[..., None], colour(205, 195, 185), colour(165, 75, 55) * shade[..., None])


def wooden_floor(side: int, width: int, rng: np.random.Generator) -> Scene:
    height = side // 6
    y = np.arange(side) + rng.integers(0, height)
    shade = rng.uniform(0.85, 1.08, 16).astype(np.float32)[y // height % 16]
    plank = colour(190, 135, 80) * shade[:, None, None]
    plank = np.where((y % height < side // 64)[:, None, None], colour(110, 70, 35), plank)
    return np.broadcast_to(plank, (side, width, 3)).copy()


def tiled_floor(side: int, width: int, rng: np.random.Generator) -> Scene:
    cell = side // 5
    y, x = np.mgrid[:side, :width] + rng.integers(0, cell, (2, 1, 1))
    dark = ((y // cell + x // cell) % 2)[..., None]
    return np.where(dark, colour(120, 150, 165), colour(222, 228, 230)) * (1.06 - 0.12 * rows(side))


def desert(side: int, width: int, rng: np.random.Generator) -> Scene:
    y, x = rows(side), np.arange(width, dtype=np.float32)[None, :, None] / side
    dune = rng.uniform(0.4, 0.55) + 0.08 * np.sin(2 * np.pi * (0.8 * x + rng.random()))
    near = dune + 0.25 + 0.06 * np.sin(2 * np.pi * (0.6 * x + rng.random()))
    sand = np.where(y < near, colour(236, 180, 96), colour(214, 148, 66))
    return np.where(y < dune, colour(255, 222, 170) - colour(0, 30, 40) * (1 - y), sand).astype(np.float32)


def road(side: int, width: int, rng: np.random.Generator) -> Scene:
    y, x = rows(side), np.arange(width)[None, :, None] + rng.integers(0, side)
    horizon, kerb = rng.uniform(0.2, 0.3), rng.uniform(0.5, 0.6)
    picture = np.where(y < horizon, colour(170, 215, 250), colour(110, 175, 85))
    picture = np.where(y > kerb, colour(92, 94, 102), picture)
    picture = np.where((y > kerb) & (y < kerb + 0.03), colour(225, 225, 220), picture)
    dash = (y > kerb + 0.2) & (y < kerb + 0.25) & (x % (side // 2) < side // 4)
    return np.where(dash, colour(245, 235, 200), picture).astype(np.float32)


SCENES: dict[str, Painter] = {
    "a white background": plain((250, 250, 250)),
    "a blue background": plain((90, 150, 230)),
    "a yellow background": plain((250, 215, 80)),
    "a pink background": plain((245, 165, 190)),
    "a beach": beach,
    "grass": grass,
    "snow": snow,
    "a night sky": night_sky,
    "a brick wall": brick_wall,
    "a wooden floor": wooden_floor,
    "a tiled floor": tiled_floor,
    "a desert": desert,
    "a road": road,
}
