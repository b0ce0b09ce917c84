"""The checkpoints of a run: one safetensors file each, written completely or not at all; the newest few are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..files import plain_json, read_whole, write_whole
from ..texts import shown
from .config import PretrainingConfig

PATTERN = "step_*.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest last."""
    return sorted(folder.glob(PATTERN))


def save(folder: Path, step: int, state: Mapping[str, Tensor], config: PretrainingConfig) -> Path:
    """Write the state after that step, and remove all but the newest few checkpoints.

    Raises ValueError, in one sentence, if it cannot be written.
    """
    path = folder / f"step_{step:09}.safetensors"
    metadata = {"step": str(step), "outcome": json.dumps(config.outcome())}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.unfinished"):  # by a run that was killed while it wrote
            left.unlink()
        write_whole(path, lambda unfinished: save_file(dict(state), unfinished, metadata))
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be written ({error}); fix that, and run the same command again: it resumes from the "
            "checkpoint before."
        ) from error
    for old in checkpoints(folder)[: -config.keep]:
        old.unlink()
    return path


def load(path: Path, config: PretrainingConfig) -> dict[str, Tensor]:
    """The state in that file. Raises ValueError, in one sentence, for other settings or a damaged file."""
    try:
        state, metadata = read_whole(path)
        stored = plain_json(metadata.get("outcome", "{}"))
        if not isinstance(stored, dict):
            raise ValueError("has no settings in its metadata")
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read: it {error}; remove it, and the run resumes from the checkpoint before it."
        ) from error
    asked = config.outcome()
    for name in sorted(asked | stored):
        if asked.get(name) != stored.get(name):
            raise ValueError(
                f"{path} was made with {shown(name)} = {shown(repr(stored.get(name)))}, but now it is "
                f"{shown(repr(asked.get(name)))}; set it back, or give the new run its own folder."
            )
    return state
