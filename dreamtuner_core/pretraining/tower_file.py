"""A file with an image tower alone, before it becomes part of a subject encoder's file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..encoder.tower import ImageTower, TowerConfig
from ..files import write_whole


def save_tower(path: Path, tower: ImageTower) -> None:
    """Write the tower, completely or not at all."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in tower.state_dict().items()}
    metadata = {"tower": json.dumps(asdict(tower.config))}
    write_whole(path, lambda unfinished: save_file(weights, unfinished, metadata))


def read_tower(path: str | Path) -> ImageTower:
    """The tower in that file, frozen, in fp32. Raises ValueError, in one sentence, for any other file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tower = ImageTower(TowerConfig(**json.loads((file.metadata() or {})["tower"])))
            tower.load_state_dict({key: file.get_tensor(key) for key in list(file.keys())})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is no image tower ({' '.join(str(error).split())[:200]}).") from error
    return tower.float().eval().requires_grad_(False)
