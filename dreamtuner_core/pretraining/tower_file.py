"""An image tower of our own in a safetensors file, before a subject encoder's file carries it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..encoder.tower import ImageTower, TowerConfig
from ..files import write_whole


def save_tower(path: Path, tower: ImageTower) -> None:
    """Write it: whole, or not at all."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in tower.state_dict().items()}
    metadata = {"tower": json.dumps(asdict(tower.config))}
    write_whole(path, lambda unfinished: save_file(weights, unfinished, metadata))


def read_tower(path: str | Path) -> ImageTower:
    """The tower in that file, frozen, in fp32. Raises ValueError, in one sentence, for what is none."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tower = ImageTower(TowerConfig(**json.loads((file.metadata() or {})["tower"])))
            tower.load_state_dict({key: file.get_tensor(key) for key in list(file.keys())})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is no image tower ({' '.join(str(error).split())[:200]}).") from error
    return tower.float().eval().requires_grad_(False)
