"""The training pictures, composed once: `pictures.npy` [N, side, side, 3] and `silhouettes.npy` [N, side, side], both
uint8, and `captions.json`.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from .artwork import load_artwork, load_held_out
from .checkpoint import reserve, write_whole
from .compose import compose

CHUNK = 500


def artwork_by_word(archive: Path, concepts: dict[str, str] | None, held_out: bool) -> dict[str, list[Image.Image]]:
    """{caption word: its drawings}, either all but the held-out ones or only those."""
    withheld, drawings = load_held_out(), {}
    loaded = load_artwork(archive)
    words = {name: word for word, name in concepts.items()} if concepts else {name: name for name, _ in loaded}
    for (name, drawing), image in loaded.items():
        if name in words and ((name, drawing) in withheld) == held_out:
            drawings.setdefault(words[name], []).append(image)
    return drawings


def compose_chunk(
    task: tuple[Path, dict[str, str] | None, int, int, int, bool],
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures, silhouettes and captions from number `start` on, each from its own seed.

    task: (archive, concepts, side, start, count, held_out). Held-out drawings are shown as they are.
    """
    archive, concepts, side, start, count, held_out = task
    artwork = artwork_by_word(archive, concepts, held_out)
    generators = [np.random.default_rng([int(held_out), start + i]) for i in range(count)]
    pictures = [compose(artwork, side, rng, individuals=not held_out) for rng in generators]
    return np.stack([p.pixels for p in pictures]), np.stack([p.mask for p in pictures]), [p.caption for p in pictures]


def compose_all(folder: Path, archive: Path, concepts: dict[str, str] | None, side: int, count: int) -> None:
    """Compose `count` training pictures into `folder`."""
    partial, captions = [folder / f"{name}.part.npy" for name in ("silhouettes", "pictures")], []
    for path, channels in zip(partial, (1, 3)):
        reserve(path, count * side * side * channels)
    silhouettes = np.lib.format.open_memmap(partial[0], "w+", np.uint8, (count, side, side))
    pictures = np.lib.format.open_memmap(partial[1], "w+", np.uint8, (count, side, side, 3))
    tasks = [(archive, concepts, side, start, min(CHUNK, count - start), False) for start in range(0, count, CHUNK)]
    with ProcessPoolExecutor(os.cpu_count()) as workers:
        for task, (pixels, masks, words) in zip(tasks, workers.map(compose_chunk, tasks)):
            part = slice(task[3], task[3] + len(pixels))
            pictures[part], silhouettes[part] = pixels, masks
            captions += words
            print(f"composed {len(captions)} of {count} pictures", flush=True)
    pictures.flush()
    silhouettes.flush()
    write_whole(folder / "captions.json", lambda part: part.write_text(json.dumps(captions)))
    for path in partial:  # the pictures last: where they are, all is
        path.rename(path.with_name(path.name.replace(".part", "")))


def open_pictures(folder: Path) -> np.ndarray:
    """Memory-mapped [N, side, side, 3] uint8."""
    return np.load(folder / "pictures.npy", mmap_mode="r")


def open_silhouettes(folder: Path) -> np.ndarray:
    """Memory-mapped [N, side, side] uint8, 255 where a subject is."""
    return np.load(folder / "silhouettes.npy", mmap_mode="c")  # "r" would make PyTorch warn
