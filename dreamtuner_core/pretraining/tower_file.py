"""A file with an image tower alone, before it becomes part of a subject encoder's file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..encoder.tower import ImageTower, TowerConfig
from ..files import load_weights, plain_json, read_whole, write_whole
from ..texts import shown


def save_tower(path: Path, tower: ImageTower) -> None:
    """Write the tower, completely or not at all. Raises OSError if the disk fails."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in tower.state_dict().items()}
    metadata = {"tower": json.dumps(asdict(tower.config))}
    write_whole(path, lambda unfinished: save_file(weights, unfinished, metadata))


def read_tower(path: str | Path) -> ImageTower:
    """The tower in that file, frozen, in fp32. Raises ValueError, in one sentence, for any other file."""
    try:
        weights, metadata = read_whole(path)
        with torch.device("meta"):
            tower = ImageTower(TowerConfig(**plain_json(metadata.get("tower"))))
        load_weights(tower, weights)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not an image tower's file ({shown(error, 200)}); set another tower.") from error
    return tower
