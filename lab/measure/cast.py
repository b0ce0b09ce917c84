"""Who is drawn, and what the text asks for: held-out individuals, their references, and true pictures of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count

import numpy as np

from lab.world import COLOURS, KINDS, SCENES, Individual, Picture, caption_of, compose, sample_individual

REFERENCE_SCENE, WHITE = "a brick wall", "a white background"
"""What stands behind every reference, and behind the cut-out of it: no text asks for them, so there they bleed."""
REFERENCE_SIDE, REFERENCE_SIZES = 256, (0.5, 0.75)  # in pixels; of the subject in it, as a share of that
ASKED_SCENES = tuple(scene for scene in SCENES if scene not in (REFERENCE_SCENE, WHITE))
ASKS = 3  # pictures of each individual


@dataclass(frozen=True)
class Ask:
    """What a text asks of a subject. colour: named in the text, the individual's own or another."""

    scene: str
    pose: str = ""
    colour: str = ""
    number: int = 1

    def caption(self, kind: str) -> str:
        return caption_of(kind, self.scene, self.colour, self.pose, self.number)


@dataclass(frozen=True)
class Case:
    """One column of the table: an individual that no training picture shows. The number decides it, with the seed."""

    number: int
    seed: int

    @property
    def kind(self) -> str:
        return list(KINDS)[self.number % len(KINDS)]

    @cached_property
    def individual(self) -> Individual:
        return sample_individual(self._rng(0), self.kind, held_out=True)

    @cached_property
    def asks(self) -> tuple[Ask, ...]:
        """On three scenes: a pose that is not the reference's; a colour, its own or, in every other round of the kinds,
        another; two of it."""
        rng = self._rng(1)
        scenes = [str(scene) for scene in rng.permutation(ASKED_SCENES)[:ASKS]]
        poses = [pose for pose in KINDS[self.kind].poses if pose != self.reference.subjects[0].view.pose]
        pose = str(rng.choice(poses)) if poses else ""
        others = [colour for colour in COLOURS if colour != self.individual.colour]
        turn = self.number // len(KINDS) % 2
        colour = str(rng.choice(others)) if turn else self.individual.colour
        return Ask(scenes[0], pose=pose), Ask(scenes[1], colour=colour), Ask(scenes[2], number=2)

    @cached_property
    def reference(self) -> Picture:
        """The one picture of it that is given: whole, and smaller than in the pictures that are asked for."""
        for attempt in count():
            rng, shown = self._rng(2, attempt), self.individual
            picture = compose(rng, REFERENCE_SIDE, individual=shown, scene=REFERENCE_SCENE, size=REFERENCE_SIZES)
            box = picture.subjects[0].box
            if min(box) >= 0 and max(box) <= REFERENCE_SIDE:
                return picture
        raise AssertionError

    def true(self, ask: Ask, side: int, seed: int = 0, other: bool = False) -> Picture:
        """A true picture of what was asked for; other: of another individual of its kind, that looks as it may."""
        rng = self._rng(3, seed, other)
        individual = sample_individual(rng, self.kind, held_out=True) if other else self.individual
        return compose(rng, side, individual=individual, scene=ask.scene, pose=ask.pose or None, count=ask.number)

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.number, *stream])

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"


@lru_cache(maxsize=64)
def strangers(kind: str, side: int, many: int) -> tuple[Picture, ...]:
    """True pictures of individuals of that kind that are in no table."""
    rng = np.random.default_rng([list(KINDS).index(kind), 9])
    return tuple(compose(rng, side, kind=kind, held_out=True) for _ in range(many))


def cases(many: int, seed: int) -> list[Case]:
    """The first so many individuals, of all kinds in turn: a larger table holds the smaller one."""
    return [Case(number, seed) for number in range(many)]
