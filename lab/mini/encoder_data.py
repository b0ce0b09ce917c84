"""Shards for the subject encoder's pre-training on the mini base: an individual cut out, and a picture that shows it.

Without held-out individuals; the two views differ, and the silhouette is the layout. For the names of the files see
dreamtuner_core/pretraining/data.py.
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

from lab.world import compose, draw, sample_individual, sample_view

from .autoencoder import Autoencoder
from .checkpoint import write_whole
from .config import Preset
from .train_autoencoder import load_autoencoder

REFERENCE_SIDE = 160  # pixels; the trainer frames it for the image tower
SHARD, BATCH = 500, 16  # samples


def samples(preset: Preset, count: int) -> Iterator[dict[str, object]]:
    """Each from its own seed."""
    for number in range(count):
        rng = np.random.default_rng([2, number])  # 0, 1 and 3 are the base's own pictures
        individual, copies = sample_individual(rng), 2 if rng.random() < preset.repeated else 1
        picture = compose(rng, preset.side, individual=individual, count=copies)
        reference = draw(individual, sample_view(rng, individual.kind), REFERENCE_SIDE)
        yield {
            "__key__": f"{number:06}",
            "picture": picture.pixels,
            "hint.png": png(Image.fromarray(picture.mask)),
            "reference.webp": webp(Image.fromarray(reference)),
            "txt": picture.caption,
        }


def write_shards(folder: Path, work: Path, preset: Preset, count: int) -> None:
    """Write the folder of shards, with the latents of the autoencoder in `work`; it gets its name when it is complete.

    A shard, too, gets its name when it is complete, so that the shards of an interrupted attempt are readable.
    """
    unfinished = folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)  # of an earlier attempt, perhaps with other settings
    unfinished.mkdir(parents=True)
    autoencoder, made = load_autoencoder(work, preset), samples(preset, count)
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
                latents = autoencoder.encode(pictures.permute(0, 3, 1, 2).float() / 255)
            for sample, latent in zip(some, latents):
                picture = webp(Image.fromarray(sample.pop("picture")))
                writer.write(sample | {"picture.webp": picture, "latent.npy": latent.half().numpy()})


def webp(image: Image.Image) -> bytes:
    """Lossless; `exact` keeps the colours of transparent pixels."""
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True, quality=20, method=0, exact=True)
    return file.getvalue()


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
