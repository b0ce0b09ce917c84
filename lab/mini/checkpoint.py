"""The files of the stages: written completely or not at all, resumed exactly. An error is SystemExit, one sentence."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

NOT_A_CHECKPOINT = (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write` to a temporary file beside `path`, then rename it, so that an interrupted write leaves the old file."""
    partial = path.with_suffix(".part")
    try:
        write(partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save says RuntimeError for a full disk
        kept = "The one before it is untouched." if path.exists() else "Make room, or give another folder."
        raise SystemExit(f"Cannot write {path}: {error}. {kept}") from error
    finally:
        partial.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict) -> None:
    write_whole(path, lambda partial: torch.save(state, partial))


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, and its folder; as bytes, because its own writer raises other types of errors."""
    from safetensors.torch import save  # not needed on a machine that only trains

    path.parent.mkdir(parents=True, exist_ok=True)
    data = save({name: x.contiguous() for name, x in tensors.items()}, metadata)
    write_whole(path, lambda partial: partial.write_bytes(data))


def require(path: Path, stage: str) -> None:
    """Raise SystemExit if there is nothing at `path`, which that stage makes."""
    if not path.exists():
        raise SystemExit(f"There is no {path} yet: run the `{stage}` stage first.")


def read_checkpoint(path: Path, stage: str, *keys: str, mmap: bool = False) -> dict:
    """The checkpoint that this stage saved at `path`, with at least these keys."""
    require(path, stage)
    remedy = f"remove it, and the `{stage}` stage makes it again"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except NOT_A_CHECKPOINT as error:
        raise SystemExit(f"{path} cannot be read ({type(error).__name__}): {remedy}.") from error
    if not isinstance(saved, dict) or not saved.keys() >= set(keys):
        raise SystemExit(f"{path} is something else than the `{stage}` stage saves ({', '.join(keys)}): {remedy}.")
    return saved


def load_checkpoint(path: Path, stage: str, *keys: str) -> dict | None:
    """`read_checkpoint`, or None if nothing has been saved yet."""
    return read_checkpoint(path, stage, *keys) if path.exists() else None


def load_weights(module: torch.nn.Module, weights: dict, path: Path) -> None:
    """load_state_dict, with one sentence instead of a long error if the checkpoint has other shapes."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise SystemExit(
            f"{path} has another model than this preset (other shapes or keys). "
            "Choose another --folder, or remove the file to train from the start."
        ) from error


def same_options(path: Path, options: dict[str, object], made: bool) -> None:
    """Save at `path` the options that data is made with, or raise SystemExit for other ones once it is `made`.

    An older folder without that file is used as it is.
    """
    if not made:
        write_whole(path, lambda partial: partial.write_text(json.dumps(options)))
    elif path.exists():
        kept = json.loads(path.read_text())
        if other := [name for name, value in options.items() if kept.get(name, value) != value]:
            was, now = (", ".join(f"--{name} {told[name]}" for name in other) for told in (kept, options))
            raise SystemExit(
                f"The data in {path.parent} was made with {was}, not {now}: ask for that, or give --folder."
            )
