"""What the stages leave for one another: written whole or not at all, resumed exactly, refused in one sentence.

Everything here raises SystemExit with that sentence.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

NOT_A_CHECKPOINT = (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write` to a temporary file beside `path`, then rename, so that a stopped one leaves the last good file."""
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
    """Write a safetensors file, with its folder; as bytes, since its own writer has errors of a kind of their own."""
    from safetensors.torch import save  # not needed on a machine that only trains

    path.parent.mkdir(parents=True, exist_ok=True)
    data = save({name: x.contiguous() for name, x in tensors.items()}, metadata)
    write_whole(path, lambda partial: partial.write_bytes(data))


def require(path: Path, stage: str) -> None:
    """Refuse to go on where there is nothing at `path`, which that stage makes."""
    if not path.exists():
        raise SystemExit(f"There is no {path} yet: run the `{stage}` stage first.")


def read_checkpoint(path: Path, stage: str, *keys: str, mmap: bool = False) -> dict:
    """What that stage saved at `path`, with these keys at least."""
    require(path, stage)
    remedy = f"remove it, and the `{stage}` stage makes it anew"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except NOT_A_CHECKPOINT as error:
        raise SystemExit(f"{path} cannot be read ({type(error).__name__}): {remedy}.") from error
    if not isinstance(saved, dict) or not saved.keys() >= set(keys):
        raise SystemExit(f"{path} is something else than the `{stage}` stage saves ({', '.join(keys)}): {remedy}.")
    return saved


def load_checkpoint(path: Path, stage: str, *keys: str) -> dict | None:
    """The same, or None where nothing has been saved yet."""
    return read_checkpoint(path, stage, *keys) if path.exists() else None


def load_weights(module: torch.nn.Module, weights: dict, path: Path) -> None:
    """load_state_dict with a sentence instead of a page when the checkpoint is of another shape."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise SystemExit(
            f"{path} holds another model than this preset's (other shapes or keys). "
            "Give another --folder, or remove it to train from nothing."
        ) from error


def same_options(path: Path, options: dict[str, object], made: bool) -> None:
    """Keep at `path` the options that data is made with, or refuse others once it is `made`.

    Without that file, as older folders are, data is taken as it is.
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
