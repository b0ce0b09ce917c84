"""One individual: a choice of each attribute of its kind."""

import hashlib
from dataclasses import dataclass

import numpy as np

from .kinds import KINDS
from .palette import far_apart

HELD_OUT = 10  # one in so many individuals is shown in no training picture


@dataclass(frozen=True)
class Individual:
    kind: str
    values: tuple[int, ...]  # one index for each attribute of KINDS[kind]

    def __getitem__(self, name: str) -> str:
        """The word of attribute `name`; KeyError where the kind has none of that name."""
        for attribute, value in zip(KINDS[self.kind].attributes, self.values, strict=True):
            if attribute.name == name:
                return attribute.values[value]
        raise KeyError(f"a {self.kind} has no attribute {name!r}")

    @property
    def colour(self) -> str:
        """The colour that captions name."""
        return self[KINDS[self.kind].main_colour]

    @property
    def text(self) -> str:
        """Its letters in reading order; empty where it has none."""
        names = (attribute.name for attribute in KINDS[self.kind].attributes)
        return "".join(self[name] for name in names if name.startswith("letter"))


def is_held_out(individual: Individual) -> bool:
    """Whether it belongs to the tenth that no training picture shows; the same on every machine, for ever."""
    key = f"{individual.kind}:{','.join(map(str, individual.values))}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) % HELD_OUT == 0


def sample_individual(rng: np.random.Generator, kind: str | None = None, held_out: bool = False) -> Individual:
    """An individual (of `kind`) from the training share, or from the held-out tenth. Its colours are far apart."""
    while True:
        word = kind or str(rng.choice(list(KINDS)))
        attributes = KINDS[word].attributes
        individual = Individual(word, tuple(int(rng.integers(len(attribute.values))) for attribute in attributes))
        palette = (individual[attribute.name] for attribute in attributes if attribute.group == "colours")
        if far_apart(palette) and is_held_out(individual) == held_out:
            return individual
