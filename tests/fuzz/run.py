"""Reading broken files one after the other."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from .kinds import KINDS, Kind
from .mutations import mutated

SLOWEST = 10.0  # seconds that a broken file of some kilobytes may take at the very most, on a busy machine
LONGEST = 800  # characters of a refusal


def fuzz(count: int, seed: int = 0, say: Callable[[str], object] = lambda _: None) -> list[str]:
    """What went wrong, in words: kind, number of the mutation, and what was raised instead of one sentence."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, kind) in enumerate(KINDS.items()):
            path = Path(folder) / f"{number}{kind.suffix}"
            kind.write(path)
            good, slowest = path.read_bytes(), 0.0
            assert not outcome(kind, path), f"a good file of the kind {name} is refused: {outcome(kind, path)}"
            for i in range(number, count, len(KINDS)):
                path.write_bytes(mutated(good, Random(f"{seed} {i}")))
                began = time.monotonic()
                said = outcome(kind, path)
                took = time.monotonic() - began
                slowest = max(slowest, took)
                if said.startswith("!") or took > SLOWEST:
                    wrong.append(f"{name} {i}: {took:.1f} s {said}")
            say(f"{name}: slowest {slowest:.2f} s")
    return wrong


def outcome(kind: Kind, path: Path) -> str:
    """Empty where the file is read; why not, and with a mark of exclamation what is no plain refusal."""
    try:
        kind.read(path)
    except ValueError as error:
        said = str(error)
        return said if said.isprintable() and said and len(said) < LONGEST else f"! not one line: {said!r:.300}"
    except BaseException as error:  # a panic of safetensors' is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"! {type(error).__name__}: {error!s:.300}"
    return ""
