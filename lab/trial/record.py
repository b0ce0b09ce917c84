"""What a trial has done so far, in one JSON file that is written after every picture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Shot:
    """One picture. way: before, after or tuned. score: what Score Pictures says of it, None until it was asked."""

    way: str
    prompt: int
    seed: int
    file: str
    seconds: float
    first: bool  # the first of its way since the host started: it also loads models
    score: dict[str, Any] | None = None


@dataclass
class Record:
    """setup, tuning: seconds. memory: bytes of main memory, at most; gpu_memory: of the graphics card."""

    folder: Path
    setup: float = 0.0
    tuning: float = 0.0
    memory: int = 0
    gpu_memory: int = 0
    host: str = ""
    device: str = ""
    shots: list[Shot] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Record:
        """What is there; an empty one where nothing is, or its file is no whole one."""
        record = cls(folder)
        try:
            told = json.loads((folder / "record.json").read_text(encoding="utf-8"))
            shots = [Shot(**shot) for shot in told.pop("shots")]
            record = cls(folder, **told, shots=[shot for shot in shots if (folder / shot.file).is_file()])
        except (OSError, ValueError, TypeError, KeyError):
            pass
        return record

    def write(self) -> None:
        told = {name: value for name, value in asdict(self).items() if name != "folder"}
        part = self.folder / "record.part"
        part.write_text(json.dumps(told, indent=1), encoding="utf-8")
        part.replace(self.folder / "record.json")

    def of(self, way: str, prompt: int | None = None) -> list[Shot]:
        return [s for s in self.shots if s.way == way and prompt in (None, s.prompt)]

    def has(self, way: str, prompt: int, seed: int) -> bool:
        return any((s.way, s.prompt, s.seed) == (way, prompt, seed) for s in self.shots)
