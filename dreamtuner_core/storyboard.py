"""A story in lines: who is in each picture, and which earlier pictures it is drawn from (appendix B)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .ranges import check_choice, check_number
from .texts import LONGEST_TEXT, checked_text, shown

MOST_LINES = 64
MOST_WEIGHT = 100.0
MOST_STEPS, MOST_CFG = 10_000, 100.0
SEEDS = ("same", "counting up")
BOM = "\ufeff"  # what some editors put at the start of a file
COMMA, COLON = re.compile("[,\uff0c\u3001]"), re.compile(r"(?<!\d):|:(?!\d)|\uff1a")  # full width too; not of 12:30


@dataclass(frozen=True)
class Line:
    """One picture of the story. text: its prompt. who: indices of the subjects in it, in order."""

    text: str
    who: tuple[int, ...]


@dataclass(frozen=True)
class StoryboardConfig:
    """How every line is drawn. first_weight, previous_weight: w_ref of the subject and of the earlier picture.

    Raises ValueError, in one sentence, for a value out of range.
    """

    first_weight: float = 1.0
    previous_weight: float = 0.5
    seed: int = 0
    seeds: str = SEEDS[0]
    steps: int = 20
    cfg: float = 7.0
    sampler_name: str = "dpmpp_2m"
    scheduler: str = "karras"

    def __post_init__(self) -> None:
        for name in ("first_weight", "previous_weight"):
            check_number(name, getattr(self, name), 0, MOST_WEIGHT, usual="; 1 to 3 is usual")
        check_number("seed", self.seed, 0, 2**64 - 1, whole=True)
        check_choice("seeds", self.seeds, SEEDS)
        check_number("steps", self.steps, 1, MOST_STEPS, whole=True)
        check_number("cfg", self.cfg, 0, MOST_CFG)

    def seed_of(self, i: int) -> int:
        """The seed of the i-th line."""
        return self.seed if self.seeds == "same" else (self.seed + i) % 2**64


def story(prompts: str, always: str, names: str, subjects: int) -> list[Line]:
    """The lines that are not blank, each joined with `always`.

    names: of the subjects, in their order, separated by commas; may be empty. A line that begins with some of them and
    a colon ("hero, cat: on a roof") has only those subjects, any other line has all. subjects: how many are linked.
    Raises ValueError, in one sentence, for no line, too many lines, or names that do not match.
    """
    checked_text("prompts", prompts, 2 * MOST_LINES * LONGEST_TEXT)  # each line is checked below
    for what, text in (("always", always), ("names", names)):
        checked_text(what, text)
    known = _parts(names)
    if len(known) > subjects or len(set(known)) < len(known):
        raise ValueError(
            f"names must be at most {subjects} different names, one for each linked subject, but is '{shown(names)}'."
        )
    texts = [line.strip() for line in prompts.replace(BOM, "").splitlines() if line.strip()]
    if not texts:
        raise ValueError("prompts is blank; write one line for each picture.")
    if len(texts) > MOST_LINES:
        raise ValueError(f"expected at most {MOST_LINES} lines, but prompts has {len(texts)}; use several nodes.")
    for i, text in enumerate(texts, 1):
        checked_text(f"line {i}", text)
    return [_line(i, text, always.strip(), known, subjects) for i, text in enumerate(texts, 1)]


def previous_of(lines: Sequence[Line], i: int) -> list[int]:
    """The earlier pictures that line i is drawn from: for each of its subjects, the newest one that shows it.

    A picture with a subject that is not in line i is not used, so that this subject does not appear in it.
    """
    who = set(lines[i].who)
    newest = {one: j for j in range(i) if who.issuperset(lines[j].who) for one in lines[j].who}  # a later j wins
    return sorted(set(newest.values()))


def _line(number: int, text: str, always: str, known: list[str], subjects: int) -> Line:
    who = tuple(range(subjects))
    before, *after = COLON.split(text, maxsplit=1)
    if after and known:
        called = _parts(before)
        unknown = [name for name in called if name not in known]
        if called and not unknown:
            who, text = tuple(sorted({known.index(name) for name in called})), after[0].strip()
        elif all(len(name.split()) == 1 for name in called):
            raise ValueError(
                f"line {number} begins with '{shown(before)}:', but the names are {shown(', '.join(known))}; use only "
                "these before a colon, or leave the colon out."
            )
    if not text:
        raise ValueError(f"line {number} has names but no text; write what the picture shows.")
    return Line(f"{text}, {always}" if always else text, who)


def _parts(names: str) -> list[str]:
    return [" ".join(name.lower().split()) for name in COMMA.split(names) if name.strip()]
