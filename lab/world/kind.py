"""What a kind of thing is: a table of attributes and its poses."""

from dataclasses import dataclass

from .marks import GLYPHS, LOGOS
from .palette import COLOURS
from .pen import PATTERNS

GROUPS = ("shapes", "colours", "pattern", "marks")


@dataclass(frozen=True)
class Attribute:
    name: str
    group: str  # one of GROUPS
    values: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    word: str
    attributes: tuple[Attribute, ...]  # the first of the group colours is the one that captions name
    poses: tuple[str, ...] = ()  # words of captions, such as "with its arms up"

    def position(self, name: str) -> int:
        return next(i for i, attribute in enumerate(self.attributes) if attribute.name == name)

    @property
    def main_colour(self) -> str:
        """The attribute whose value stands in captions as the thing's colour."""
        return next(attribute.name for attribute in self.attributes if attribute.group == "colours")


def shape(name: str, *values: str) -> Attribute:
    return Attribute(name, "shapes", values)


def colours(*names: str) -> tuple[Attribute, ...]:
    return tuple(Attribute(f"{name} colour", "colours", tuple(COLOURS)) for name in names)


def letters(count: int) -> tuple[Attribute, ...]:
    names = ("letter",) if count == 1 else tuple(f"letter {i + 1}" for i in range(count))
    return tuple(Attribute(name, "marks", tuple(GLYPHS)) for name in names)


PATTERN = Attribute("pattern", "pattern", PATTERNS)
LOGO = Attribute("logo", "marks", tuple(LOGOS))
