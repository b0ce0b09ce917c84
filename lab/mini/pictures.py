"""The training pictures, composed once: `pictures.npy` [N, side, side, 3] and `silhouettes.npy` [N, side, side], both
uint8, and `captions.json`; and the same of twice the width: `wide_pictures.npy` and so on.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lab.world import Picture, compose, compose_wide

from .checkpoint import require, write_whole
from .config import SQUARE, WIDE, Preset

CHUNK = 500
ARRAYS, CAPTIONS = ("silhouettes.npy", "pictures.npy"), "captions.json"
TRAINING, HELD_OUT, WIDE_TRAINING = 0, 1, 3  # streams of seeds; 2 is the subject encoder's


def draw_picture(preset: Preset, shape: str, number: int, held_out: bool = False) -> Picture:
    """Picture `number` of its shape; the same bytes in every call."""
    stream = HELD_OUT if held_out else WIDE_TRAINING if shape == WIDE else TRAINING
    rng = np.random.default_rng([stream, number])
    if shape == WIDE:
        return compose_wide(rng, preset.side, held_out=held_out)
    count = 2 if rng.random() < preset.repeated else 1
    return compose(rng, preset.side, count=count, held_out=held_out)


def compose_chunk(task: tuple[Preset, str, int, int, bool]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures, silhouettes and captions: (preset, shape, number of the first, count, held_out)."""
    preset, shape, start, count, held_out = task
    pictures = [draw_picture(preset, shape, start + i, held_out) for i in range(count)]
    return np.stack([p.pixels for p in pictures]), np.stack([p.mask for p in pictures]), [p.caption for p in pictures]


def compose_all(folder: Path, preset: Preset, shape: str) -> None:
    """Compose the preset's training pictures of one shape into `folder`."""
    partial, captions = [folder / f"{shape}{name}".replace(".npy", ".part.npy") for name in ARRAYS], []
    count, side, width = preset.counts[shape], preset.side, preset.side * (2 if shape == WIDE else 1)
    tasks = [(preset, shape, start, min(CHUNK, count - start), False) for start in range(0, count, CHUNK)]
    try:
        silhouettes = reserved(partial[0], (count, side, width))
        pictures = reserved(partial[1], (count, side, width, 3))
        with ProcessPoolExecutor(os.cpu_count()) as workers:
            for pixels, masks, words in workers.map(compose_chunk, tasks):
                part = slice(len(captions), len(captions) + len(words))
                pictures[part], silhouettes[part] = pixels, masks
                captions += words
                print(f"composed {len(captions)} of {count} {shape.replace('_', ' ')}pictures", flush=True)
        pictures.flush()
        silhouettes.flush()
        write_whole(folder / f"{shape}{CAPTIONS}", lambda part: part.write_text(json.dumps(captions)))
        for path in partial:  # the pictures last: if they exist, all files exist
            path.rename(path.with_name(path.name.replace(".part", "")))
    finally:
        for path in partial:
            path.unlink(missing_ok=True)


def reserved(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A new memory-mapped uint8 array with its disk space reserved, because a disk that is full later is a bus error.

    Raises SystemExit, in one sentence, if there is not enough space.
    """
    try:
        array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        if hasattr(os, "posix_fallocate"):
            with path.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        size = np.prod(shape) / 2**20
        raise SystemExit(f"Cannot write {path} ({size:.0f} MiB): {error}. Make room, or set --folder.") from error
    return array


def composed(folder: Path, shape: str) -> bool:
    return all((folder / f"{shape}{name}").exists() for name in (*ARRAYS, CAPTIONS))


def read(folder: Path, name: str, how: Callable[[Path], Any]) -> Any:
    """A file of the `data` stage. Raises SystemExit, in one sentence, if it is missing or broken."""
    path = folder / name
    require(path, "data")
    try:
        return how(path)
    except (OSError, ValueError, EOFError) as error:
        raise SystemExit(f"{path} cannot be read ({error}): remove it, and the `data` stage makes it again.") from error


def open_pictures(folder: Path, shape: str = SQUARE) -> np.ndarray:
    """Memory-mapped [N, side, width, 3] uint8."""
    return read(folder, f"{shape}pictures.npy", lambda path: np.load(path, mmap_mode="r"))


def open_silhouettes(folder: Path, shape: str = SQUARE) -> np.ndarray:
    """Memory-mapped [N, side, width] uint8, 255 where a subject is."""
    return read(folder, f"{shape}silhouettes.npy", lambda path: np.load(path, mmap_mode="c"))  # "r": PyTorch would warn


def read_captions(folder: Path, shape: str = SQUARE) -> list[str]:
    return read(folder, f"{shape}{CAPTIONS}", lambda path: json.loads(path.read_text()))
