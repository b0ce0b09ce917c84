"""Who is drawn: drawings that the mini base never saw, and true pictures composed of any drawing."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image

from lab.mini.artwork import ARCHIVE, load_artwork, load_held_out
from lab.mini.compose import paint_scene, place, pose
from lab.mini.config import CPU_CONCEPTS, UNSEEN_CONCEPTS
from lab.mini.individuals import turn_hue
from lab.mini.scenes import SCENES

WORDS = {concept: word for word, concept in CPU_CONCEPTS.items()}
"""Caption word of each concept that the mini base was trained on."""
USUAL, HARD = "usual", "hard"
SAME_DESIGN = "fluent-flat"  # is the fluent-3d drawing, rendered flat: no second individual
SIZES = (0.65, 0.95)  # longer side of a subject as a share of the picture's, as in training
TURN = 0.4  # of the hue circle, for a second individual of the same drawing


@dataclass(frozen=True, order=True)
class Look:
    """One individual: a drawing of a concept, with its hue turned by a share of the circle."""

    concept: str
    drawing: str
    turn: float = 0.0

    @property
    def word(self) -> str:
        return WORDS.get(self.concept, self.concept)

    def __str__(self) -> str:
        return f"{self.concept}/{self.drawing}" + (f"/hue {self.turn:g}" if self.turn else "")


@dataclass(frozen=True)
class Placed:
    """A drawing somewhere on a scene. pixels: [side, side, 3] uint8; mask: [side, side] uint8, 255 on the subject."""

    pixels: np.ndarray
    mask: np.ndarray


@cache
def artwork() -> dict[tuple[str, str], Image.Image]:
    return load_artwork(ARCHIVE)


@cache
def image(look: Look) -> Image.Image:
    """The individual's drawing: RGBA, cropped to its alpha."""
    drawing = artwork()[look.concept, look.drawing]
    return turn_hue(drawing, look.turn) if look.turn else drawing


def training_looks() -> list[Look]:
    """Every drawing of the ten concepts that training pictures may show."""
    held_out = load_held_out()
    return [Look(*key) for key in artwork() if key[0] in WORDS and key not in held_out]


def held_out_looks() -> list[Look]:
    """The usual case: a known concept in a drawing that no training picture shows, one design each."""
    held_out = load_held_out()
    return [Look(*key) for key in artwork() if key[0] in WORDS and key in held_out and key[1] != SAME_DESIGN]


def unknown_looks() -> list[Look]:
    """The hard case: one drawing of each concept of the archive that is held out in every drawing."""
    return [Look(*key) for key in sorted(artwork()) if key[0] in UNSEEN_CONCEPTS and key[1] == "twemoji"]


def subjects(case: str, count: int) -> list[Look]:
    """That many subjects: first each drawing in its own colours, then each again with its hue turned."""
    looks = held_out_looks() if case == USUAL else unknown_looks()
    looks += [Look(look.concept, look.drawing, TURN) for look in looks]
    if count > len(looks):
        raise ValueError(f"there are {len(looks)} subjects of the {case} case, but {count} were asked for.")
    spread = looks[: len(looks) // 2] if count <= len(looks) // 2 else looks
    return [spread[i * len(spread) // count] for i in range(count)]


@lru_cache(maxsize=1024)
def placed(look: Look, scene: str, side: int, seed: int, sizes: tuple[float, float] = SIZES) -> Placed:
    """A true picture of the individual: other seeds place, flip and turn it in other ways."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{look} {scene}".encode())])
    canvas = paint_scene(scene, side, side, rng)
    mask = Image.new("L", (side, side))
    place(canvas, mask, [pose(image(look), round(side * rng.uniform(*sizes)), rng)], rng)
    return Placed(np.asarray(canvas), np.asarray(mask))


def random_pictures(looks: Sequence[Look], side: int, count: int, seed: int) -> list[tuple[Look, str, Placed]]:
    """True pictures as training shows them: any look and scene, half of the hues turned."""
    rng = np.random.default_rng(seed)
    chosen = []
    for number in range(count):
        look, scene = looks[int(rng.integers(len(looks)))], list(SCENES)[int(rng.integers(len(SCENES)))]
        turn = round(float(rng.random()), 2) if rng.random() < 0.5 else look.turn
        turned = Look(look.concept, look.drawing, turn)
        chosen.append((turned, scene, placed.__wrapped__(turned, scene, side, seed * 100_000 + number)))
    return chosen
