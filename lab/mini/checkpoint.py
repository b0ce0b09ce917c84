"""Checkpoints of a running training: written whole or not at all, resumed exactly."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import torch

NOT_A_CHECKPOINT = (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write` to a temporary file beside `path`, then rename, so that a stopped one leaves the last good file.

    Raises SystemExit, in one sentence, where the disk is full or the folder cannot be written.
    """
    partial = path.with_suffix(".part")
    try:
        write(partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save says RuntimeError for a full disk
        kept = "The one before it is untouched." if path.exists() else "Make room, or give another folder."
        raise SystemExit(f"Cannot write {path}: {error}. {kept}") from error
    finally:
        partial.unlink(missing_ok=True)


def reserve(path: Path, size: int) -> None:
    """An empty file of `size` bytes: a full disk is told now, and not by a crash in the midst of a mapped file."""
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise SystemExit(
            f"Cannot write {path} ({size / 2**20:.0f} MiB): {error}. Make room, or give --folder."
        ) from error


def save_checkpoint(path: Path, state: dict) -> None:
    write_whole(path, lambda partial: torch.save(state, partial))


def load_checkpoint(path: Path) -> dict | None:
    """The state saved at `path`, or None where nothing has been saved yet."""
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except NOT_A_CHECKPOINT as error:
        raise SystemExit(f"{path} cannot be read ({type(error).__name__}): remove it to train from nothing.") from error


def load_weights(module: torch.nn.Module, weights: dict, path: Path) -> None:
    """load_state_dict with a sentence instead of a page when the checkpoint is of another shape."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise SystemExit(
            f"{path} holds another model than this preset's (other shapes or keys). "
            "Give another --folder, or remove it to train from nothing."
        ) from error
