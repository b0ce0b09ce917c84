"""The state of a trial, in one JSON file that is written after every picture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dreamtuner_core.files import write_whole


@dataclass
class Shot:
    """One picture. way: before, after or tuned. score: the figures of Score Pictures, None until it is scored."""

    way: str
    prompt: int
    seed: int
    file: str
    seconds: float
    first: bool  # the first of its way since the host started: it also loads models
    score: dict[str, Any] | None = None


@dataclass
class Record:
    """setup, tuning: seconds. memory, gpu_memory: the peak in bytes, of main memory and of the graphics card."""

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
        """The record in that folder; an empty one if there is none, or its file is damaged."""
        record = cls(folder)
        try:
            found = json.loads((folder / "record.json").read_text(encoding="utf-8"))
            shots = [Shot(**shot) for shot in found.pop("shots")]
            record = cls(folder, **found, shots=[shot for shot in shots if (folder / shot.file).is_file()])
        except (OSError, ValueError, TypeError, KeyError):
            pass
        return record

    def write(self) -> None:
        content = {name: value for name, value in asdict(self).items() if name != "folder"}
        text = json.dumps(content, indent=1)
        write_whole(self.folder / "record.json", lambda path: path.write_text(text, encoding="utf-8"))

    def of(self, way: str, prompt: int | None = None) -> list[Shot]:
        return [s for s in self.shots if s.way == way and prompt in (None, s.prompt)]

    def has(self, way: str, prompt: int, seed: int) -> bool:
        return any((s.way, s.prompt, s.seed) == (way, prompt, seed) for s in self.shots)
