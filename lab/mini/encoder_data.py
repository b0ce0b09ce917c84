"""Shards for the subject encoder's pre-training on the mini base: a drawing cut out, and a picture that shows it.

Only training drawings (held_out.json); both show the same individual, and the silhouette is the layout. What the files
are called is said in dreamtuner_core/pretraining/data.py.
"""

import io
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import islice
from math import ceil
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image

from .autoencoder import Autoencoder
from .checkpoint import write_whole
from .compose import arrange
from .config import Preset
from .export import SD_SCALE
from .individuals import individual
from .pictures import artwork_by_word
from .scenes import SCENES
from .train_autoencoder import load_autoencoder

REFERENCE_SIDE = 160  # of the drawing's longer side; the trainer frames it for the image tower
SHARD, BATCH = 500, 16  # samples


def samples(archive: Path, preset: Preset, count: int) -> Iterator[dict[str, object]]:
    """Each from its own seed."""
    artwork = artwork_by_word(archive, preset.concepts, held_out=False)
    for number in range(count):
        rng = np.random.default_rng([2, number])  # 0 and 1 are the base's own pictures
        word, scene = list(artwork)[rng.integers(len(artwork))], list(SCENES)[rng.integers(len(SCENES))]
        drawing = individual(artwork[word][rng.integers(len(artwork[word]))], rng)
        copies = 2 if rng.random() < preset.repeated else 1
        picture = arrange([drawing] * copies, [word] * copies, scene, preset.side, rng)
        yield {
            "__key__": f"{number:06}",
            "picture": picture.pixels,
            "hint.png": png(Image.fromarray(picture.mask)),
            "reference.webp": webp(shrunk(drawing, REFERENCE_SIDE)),
            "txt": picture.caption,
        }


def write_shards(folder: Path, work: Path, archive: Path, preset: Preset, count: int) -> None:
    """Fill the folder, with the latents of the autoencoder in `work`; it stands there when it is whole.

    Each shard, too, has its name only when it is whole: what a stopped attempt leaves can be read to the end.
    """
    unfinished = folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)  # another attempt's, perhaps of other settings
    unfinished.mkdir(parents=True)
    autoencoder, made = load_autoencoder(work, preset), samples(archive, preset, count)
    for number in range(ceil(count / SHARD)):
        write = partial(write_shard, made=islice(made, SHARD), autoencoder=autoencoder)
        write_whole(unfinished / f"{number:04}.tar", write)
    unfinished.rename(folder)
    print(f"wrote {count} samples to {folder}")


def write_shard(path: Path, made: Iterator[dict[str, object]], autoencoder: Autoencoder) -> None:
    with webdataset.TarWriter(str(path)) as writer:
        while some := list(islice(made, BATCH)):
            pictures = torch.stack([torch.from_numpy(sample["picture"].copy()) for sample in some])
            with torch.inference_mode():
                latents = autoencoder.encode(pictures.permute(0, 3, 1, 2).float() / 255) / SD_SCALE
            for sample, latent in zip(some, latents):
                picture = webp(Image.fromarray(sample.pop("picture")))
                writer.write(sample | {"picture.webp": picture, "latent.npy": latent.half().numpy()})


def shrunk(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    return image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.BOX)


def webp(image: Image.Image) -> bytes:
    """Without loss; `exact` keeps the colours under what is transparent."""
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True, quality=20, method=0, exact=True)
    return file.getvalue()


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
