"""Checkpoints of a running training: written whole or not at all, resumed exactly."""

from pathlib import Path

import torch


def save_checkpoint(path: Path, state: dict) -> None:
    """Write to a temporary file beside `path`, then rename, so that a killed run leaves the last good one."""
    partial = path.with_suffix(".part")
    try:
        torch.save(state, partial)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise SystemExit(f"Cannot write the checkpoint {path}: {error}. The one before it is untouched.") from error
    partial.replace(path)


def load_checkpoint(path: Path) -> dict | None:
    """The state saved at `path`, or None where nothing has been saved yet."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def load_weights(module: torch.nn.Module, weights: dict, path: Path) -> None:
    """load_state_dict with a sentence instead of a page when the checkpoint is of another shape."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise SystemExit(
            f"{path} holds another model than this preset's (other shapes or keys). "
            "Give another --folder, or remove it to train from nothing."
        ) from error
