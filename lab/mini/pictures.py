"""The training pictures, composed once: `pictures.npy` [N, side, side, 3] and `silhouettes.npy` [N, side, side], both
uint8, and `captions.json`; and the same of twice the width: `wide_pictures.npy` and so on.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from .artwork import KINDS, load_artwork, load_held_out
from .checkpoint import reserve, write_whole
from .compose import compose, compose_wide
from .config import SQUARE, WIDE, Preset

CHUNK = 500


@cache
def other_kinds() -> dict[str, list[Image.Image]]:
    """{emoji name: its training drawings} of the kinds that wide pictures alone show."""
    return artwork_by_word(KINDS, None, held_out=False)


def artwork_by_word(archive: Path, concepts: dict[str, str] | None, held_out: bool) -> dict[str, list[Image.Image]]:
    """{caption word: its drawings}, either all but the held-out ones or only those."""
    withheld, drawings = load_held_out(), {}
    loaded = load_artwork(archive)
    words = {name: word for word, name in concepts.items()} if concepts else {name: name for name, _ in loaded}
    for (name, drawing), image in loaded.items():
        if name in words and ((name, drawing) in withheld) == held_out:
            drawings.setdefault(words[name], []).append(image)
    return drawings


def compose_chunk(task: tuple[Path, Preset, str, int, int, bool]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures, silhouettes and captions of one shape, each from its own seed.

    task: (archive, preset, shape, number of the first, count, held_out). Held-out drawings are shown as they are.
    """
    archive, preset, shape, start, count, held_out = task
    artwork = artwork_by_word(archive, preset.concepts, held_out)
    stream = 3 if shape == WIDE else int(held_out)  # 2 is the subject encoder's
    generators = [np.random.default_rng([stream, start + i]) for i in range(count)]
    if shape == WIDE:
        others = other_kinds() if preset.concepts else {}
        pictures = [compose_wide(artwork, others, preset.side, rng) for rng in generators]
    else:
        pictures = [compose(artwork, preset.side, rng, preset.repeated, not held_out) for rng in generators]
    return np.stack([p.pixels for p in pictures]), np.stack([p.mask for p in pictures]), [p.caption for p in pictures]


def compose_all(folder: Path, archive: Path, preset: Preset, shape: str) -> None:
    """Compose the preset's training pictures of one shape into `folder`."""
    partial, captions = [folder / f"{shape}{name}.part.npy" for name in ("silhouettes", "pictures")], []
    count, side, width = preset.counts[shape], preset.side, preset.side * (2 if shape == WIDE else 1)
    for path, channels in zip(partial, (1, 3)):
        reserve(path, count * side * width * channels)
    silhouettes = np.lib.format.open_memmap(partial[0], "w+", np.uint8, (count, side, width))
    pictures = np.lib.format.open_memmap(partial[1], "w+", np.uint8, (count, side, width, 3))
    tasks = [(archive, preset, shape, start, min(CHUNK, count - start), False) for start in range(0, count, CHUNK)]
    with ProcessPoolExecutor(os.cpu_count()) as workers:
        for pixels, masks, words in workers.map(compose_chunk, tasks):
            part = slice(len(captions), len(captions) + len(words))
            pictures[part], silhouettes[part] = pixels, masks
            captions += words
            print(f"composed {len(captions)} of {count} {shape.replace('_', ' ')}pictures", flush=True)
    pictures.flush()
    silhouettes.flush()
    write_whole(folder / f"{shape}captions.json", lambda part: part.write_text(json.dumps(captions)))
    for path in partial:  # the pictures last: where they are, all is
        path.rename(path.with_name(path.name.replace(".part", "")))


def open_pictures(folder: Path, shape: str = SQUARE) -> np.ndarray:
    """Memory-mapped [N, side, width, 3] uint8."""
    return np.load(folder / f"{shape}pictures.npy", mmap_mode="r")


def open_silhouettes(folder: Path, shape: str = SQUARE) -> np.ndarray:
    """Memory-mapped [N, side, width] uint8, 255 where a subject is."""
    return np.load(folder / f"{shape}silhouettes.npy", mmap_mode="c")  # "r" would make PyTorch warn
