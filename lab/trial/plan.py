"""The options of a trial on the command line, checked before anything runs."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamtuner_core.ranges import check_number
from dreamtuner_core.texts import checked_class_word, checked_day, checked_text
from lab.demo import CHECKPOINT, SAMPLING, SIDE
from lab.host import HOME

MOST_PROMPTS, LONGEST_PROMPT = 64, 1000
MINI_PROMPTS = "a robot, on a beach\na robot, on snow\na robot, on a brick wall\n"
STEPS = 20
WHOLE = {"seeds": (1, 64), "tune": (0, 100_000), "steps": (1, 1000), "side": (64, 4096)}
TEXTS = ("owner", "uses", "negative", "sampler_name", "scheduler")


@dataclass(frozen=True)
class Plan:
    """Everything the pictures depend on. references, checkpoint, clip_vision: paths. side: pixels. tune: steps or 0."""

    checkpoint: str
    references: tuple[str, ...]
    class_word: str
    prompts: tuple[str, ...]
    seeds: int
    tune: int = 0
    clip_vision: str = ""
    min_likeness: float = 0.0
    side: int = 512
    steps: int = STEPS
    cfg: float = 7.0
    sampler_name: str = "euler"
    scheduler: str = "normal"
    negative: str = ""
    owner: str = ""
    uses: str = ""
    until: str = ""

    @property
    def ways(self) -> tuple[str, ...]:
        return ("before", "after", *(["tuned"] if self.tune else []))

    @property
    def key(self) -> str:
        """Identifies this trial: an interrupted one with the same key goes on."""
        files = [(path, Path(path).stat().st_size) for path in (self.checkpoint, *self.references)]
        return hashlib.sha256(json.dumps([asdict(self), files]).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Page:
    """How the page is written. minutes_by_hand: None if not known."""

    language: str
    minutes_by_hand: float | None
    out: Path


def parse(argv: Sequence[str]) -> tuple[Plan, Page]:
    """The plan and the page of these arguments. Raises ValueError, in one sentence, for invalid ones."""
    parser = argparse.ArgumentParser(prog="python3 -m lab trial", description=sys.modules["lab.trial"].__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, default=CHECKPOINT, help="your model file; else the small test model of the lab")
    add("--reference", type=Path, nargs="+", help="one or more pictures of the subject; else a robot of the lab")
    add("--class", dest="class_word", default="robot", help="what it is, in one word: teapot")
    add("--prompts", type=Path, help="a text file, one prompt per line")
    add("--seeds", type=int, default=4, help="pictures for each prompt")
    add("--tune", type=int, default=0, metavar="STEPS", help="also train on the subject for so many steps")
    add("--clip-vision", type=Path, help="a CLIP or DINOv2 file that measures likeness; else the model's own keys")
    add("--min-likeness", type=float, default=0.0, help="with --clip-vision, the least likeness that passes")
    add("--owner", default="", help="who the person is, or who owns the character or mark")
    add("--uses", default="", help="what was agreed to, in plain words")
    add("--until", default="", help="the last day of these uses, as 2030-12-31")
    add("--minutes-by-hand", type=float, help="how long one such picture takes your people today; asked if missing")
    add("--lang", choices=("en", "ja"), default="en", help="the page's language")
    add("--out", type=Path, help="the page; else .lab/trials/KEY/trial.html")
    add("--side", type=int, help="pixels: 512 for SD1.x, 768 for SD2.x, 1024 for SDXL")
    add("--steps", type=int, default=STEPS)
    add("--cfg", type=float)
    add("--sampler", dest="sampler_name")
    add("--scheduler")
    add("--negative", default="", help="what no picture should show")
    given = parser.parse_args(argv)
    plan = _plan(given)
    minutes = _minutes(given.minutes_by_hand)
    out = given.out or HOME / "trials" / plan.key / "trial.html"
    if out.is_dir():
        raise ValueError(f"--out must be a file, but {out} is a folder; give it a name, such as trial.html.")
    return plan, Page(given.lang, minutes, out.resolve())


def _plan(given: argparse.Namespace) -> Plan:
    mini = given.checkpoint.resolve() == CHECKPOINT.resolve()
    usual: dict[str, Any] = {"side": SIDE if mini else 512, **(SAMPLING if mini else {})}
    asked = {name: getattr(given, name) for name in ("side", "cfg", "sampler_name", "scheduler")}
    sampling = usual | {name: value for name, value in asked.items() if value is not None}
    references = given.reference or [default_reference(given.class_word)]
    for path in (given.checkpoint, *references, *([given.clip_vision] if given.clip_vision else [])):
        if not path.is_file():
            raise ValueError(f"there is no file {path}; give the path of an existing file.")
    numbers: dict[str, Any] = {name: getattr(given, name) for name in WHOLE} | sampling
    for name, (low, high) in WHOLE.items():
        check_number(f"--{name}", numbers[name], low, high, whole=True)
    check_number("--cfg", numbers.get("cfg", 1.0), 0, 100)
    check_number("--min-likeness", given.min_likeness, 0, 1)
    if given.min_likeness and not given.clip_vision:
        raise ValueError("--min-likeness needs --clip-vision, because the model's own keys have no threshold.")
    if not given.class_word.strip():
        raise ValueError("--class is empty; write what the subject is, in one word.")
    for name in TEXTS:
        checked_text(f"--{name}", getattr(given, name) or "")
    checked_day("--until", given.until)
    class_word = checked_class_word(given.class_word)
    return Plan(
        checkpoint=str(given.checkpoint.resolve()),
        references=tuple(str(path.resolve()) for path in references),
        class_word=class_word,
        prompts=_prompts(given.prompts, class_word),
        seeds=given.seeds,
        tune=given.tune,
        clip_vision=str(given.clip_vision.resolve()) if given.clip_vision else "",
        min_likeness=given.min_likeness,
        steps=given.steps,
        negative=given.negative,
        owner=given.owner.strip(),
        uses=given.uses.strip(),
        until=given.until,
        **sampling,
    )


def _prompts(path: Path | None, class_word: str) -> tuple[str, ...]:
    if path is None:
        text = MINI_PROMPTS.replace("robot", class_word)
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError:
            raise ValueError(f"the prompts {path} cannot be read; give a text file, one prompt per line.") from None
        except UnicodeDecodeError:
            raise ValueError(f"the prompts {path} are not UTF-8 text; save the file as UTF-8.") from None
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        raise ValueError(f"expected 1 to {MOST_PROMPTS} prompts, one per line, but {path} has {len(prompts)}.")
    for number, prompt in enumerate(prompts, start=1):
        checked_text(f"prompt {number}", prompt)
        if len(prompt) > LONGEST_PROMPT:
            raise ValueError(f"prompt {number} has {len(prompt)} letters; {LONGEST_PROMPT} is the most.")
        if not re.search(rf"\b{re.escape(class_word)}\b", prompt, re.IGNORECASE):
            raise ValueError(
                f"prompt {number} does not name the {class_word}; write '{class_word}' where it should be."
            )
    return prompts


def _minutes(given: float | None) -> float | None:
    """Asked in the terminal if it was not given; None if nobody answers."""
    if given is None and sys.stdin.isatty():
        answer = input("How many minutes does one such picture take your people today? (Enter: not known) ").strip()
        try:
            given = float(answer) if answer else None
        except ValueError:
            raise ValueError(f"the minutes by hand must be a number, but are {answer[:40]!r}.") from None
    if given is not None and not (0 < given < math.inf):
        raise ValueError(f"the minutes by hand must be above 0, but are {given:g}.")
    return given


def default_reference(kind: str) -> Path:
    """An individual that the small test model was not trained on, cut out."""
    import numpy as np
    from PIL import Image

    from lab.world import KINDS, draw, sample_individual, sample_view

    if kind not in KINDS:
        raise ValueError(f"give --reference: the lab has no {kind!r}, only {', '.join(KINDS)}.")
    rng = np.random.default_rng(3)
    path = HOME / f"trial_{kind}.png"
    HOME.mkdir(exist_ok=True)
    individual = sample_individual(rng, kind, held_out=True)
    Image.fromarray(draw(individual, sample_view(rng, kind), 4 * SIDE)).save(path)
    return path
