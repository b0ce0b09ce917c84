"""WebDataset shards -> the rows of each step, resumable bit-identically with any number of processes.

A sample is a group of files of one name in a tar file:

    NAME.picture.jpg     the target image: cropped to the middle square and resized (png and webp too)
    NAME.latent.npy      its VAE latent, [C, h, w], if `latents` is set
    NAME.txt             its caption
    NAME.hint.png        its layout for the ControlNet (depth, silhouette, ...); not needed without one
    NAME.reference.png   the subject; without it, the picture itself
    NAME.mask.png        the subject's mask in the reference; without it, the reference's transparency

Row i of every step comes from stream i, which is endless: its n-th shard and the shuffle in it depend only on
(seed, i, n), as in WebDataset's resampling. So a position in it is two numbers, and no process needs another's data.
"""

from __future__ import annotations

import io
import logging
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset
from braceexpand import braceexpand
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..picture.masks import PRESENT
from ..subject import frame
from ..texts import shown
from ..tuning.pairs import generator
from .augment import Augmentation
from .config import PretrainingConfig

FRUITLESS = 8  # shards in a row without one usable sample, after which a stream gives up
IMAGES = ("png", "jpg", "jpeg", "webp")
Sample = Mapping[str, Any]

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """A stream's position: in its `shard`-th shard, after `taken` samples. skipped: broken samples so far."""

    shard: int = 0
    taken: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Row:
    """picture, hint: [3, S, S]; reference: [3, s, s] on white; all in 0..1. latent: [C, h, w], of the picture.

    place: the stream's position after this row.
    """

    picture: Tensor
    latent: Tensor | None
    reference: Tensor
    hint: Tensor | None
    caption: str
    place: Place


@dataclass(frozen=True)
class Batch:
    """Rows of one step: pictures, hints [B, 3, S, S], latents [B, C, h, w], references [B, 3, s, s], places [B, 3].

    step, rows: which rows of the whole step these are; a row's random numbers depend on them and the seed.
    """

    step: int
    rows: range
    pictures: Tensor
    latents: Tensor | None
    references: Tensor
    hints: Tensor | None
    captions: tuple[str, ...]
    places: Tensor


def batch_of(rows: Sequence[Row], step: int, numbers: range) -> Batch:
    """The rows stacked into a Batch. numbers: their indices in the step."""
    latents, hints = ([x for x in found if x is not None] for found in zip(*((r.latent, r.hint) for r in rows)))
    return Batch(
        step=step,
        rows=numbers,
        pictures=torch.stack([row.picture for row in rows]),
        latents=torch.stack(latents) if latents else None,
        references=torch.stack([row.reference for row in rows]),
        hints=torch.stack(hints) if hints else None,
        captions=tuple(row.caption for row in rows),
        places=torch.tensor([row.place for row in rows]),
    )


def batches(
    config: PretrainingConfig, tower_side: int, step: int, numbers: range, places: Sequence[Place]
) -> Iterator[list[Batch]]:
    """The batches of one process, from `step` on; each item is the parts of one step.

    tower_side: pixels of the references. numbers: the process's rows. places: the positions of their streams. Raises
    ValueError, in one sentence, if a stream has no usable sample left.
    """
    loader, size = _loader(Rows(config, tower_side, step, numbers, places)), len(numbers) // config.accumulation
    rows = map(_raised, loader)
    for now in count(step):
        yield [batch_of(list(islice(rows, size)), now, numbers[i : i + size]) for i in range(0, len(numbers), size)]


def _raised(row: Row | ValueError) -> Row:
    if isinstance(row, ValueError):
        raise row
    return row


def _loader(rows: Rows) -> DataLoader:
    """Rows one by one, in order: each worker reads equally many streams, and the loader takes the workers in turn."""
    most = min(rows.config.workers, len(rows.numbers))
    workers = next((n for n in range(most, 0, -1) if len(rows.numbers) % n == 0), 0)
    ahead: dict[str, Any] = {"prefetch_factor": max(2, 2 * len(rows.numbers) // workers)} if workers else {}
    return DataLoader(rows, batch_size=None, collate_fn=_as_it_is, num_workers=workers, **ahead)


def _as_it_is(row: Any) -> Any:
    return row


class Rows(IterableDataset):
    """The rows with these numbers, step by step, endless; if a stream fails, its error is the last item.

    If a worker raised it, the loader would turn it into a long traceback.
    """

    def __init__(
        self, config: PretrainingConfig, tower_side: int, step: int, numbers: range, places: Sequence[Place]
    ) -> None:
        self.config, self.tower_side, self.step, self.numbers, self.places = config, tower_side, step, numbers, places

    def __iter__(self) -> Iterator[Row | ValueError]:
        worker = get_worker_info()
        first, apart = (worker.id, worker.num_workers) if worker else (0, 1)
        streams = [
            stream(self.config, self.tower_side, number, self.step, place)
            for number, place in list(zip(self.numbers, self.places, strict=True))[first::apart]
        ]
        try:
            while True:
                yield from map(next, streams)
        except ValueError as error:
            yield error


def addresses(config: PretrainingConfig) -> list[str]:
    """The shards with braces expanded. Raises ValueError for one that would run a command, unless that is allowed."""
    urls = [url for shard in config.shards for url in braceexpand(shard)]
    command = next((url for url in urls if _runs_a_command(url)), None)
    if command is not None and not config.allow_commands:
        raise ValueError(
            f"the shard '{shown(command)}' makes WebDataset run a command, which a config must allow; look at it, and "
            "set allow_commands = true if you trust it."
        )
    return urls


def _runs_a_command(url: str) -> bool:
    """Whether WebDataset would run a command to open it, other than curl for a plain address."""
    url = re.sub(r"^[\x00-\x20]+|[\t\r\n]", "", url)  # as urllib reads it
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", url)  # a single letter is a drive of Windows
    if scheme is None or scheme[1] == "file":
        return False
    return re.fullmatch(r"https?://[^\s'\"\\`$]+", url) is None


def stream(config: PretrainingConfig, tower_side: int, number: int, step: int, place: Place) -> Iterator[Row]:
    """Row `number` of that step and of all later ones. place: the stream's position.

    Unreadable samples are counted and skipped; the first one of each shard is logged. Raises ValueError, in one
    sentence, after FRUITLESS shards without a usable sample.
    """
    urls = addresses(config)
    skipped, chances = place.skipped, ("flip", "rotation", "scale_low", "scale_high", "elastic", "blur")
    augmented = Augmentation(tower_side, **{name: getattr(config, name) for name in chances})
    fruitless, trouble = 0, "they are empty"
    for shard in count(place.shard):
        fruitless, logged = fruitless + 1, False
        chance = random.Random(f"{config.seed}:{number}:{shard}")
        url = urls[chance.randrange(len(urls))]
        for taken, sample in enumerate(_samples(url, config.shuffle, chance), start=1):
            if shard == place.shard and taken <= place.taken:  # used up before this run
                continue
            try:
                row = decoded(sample, config, tower_side)
            except Exception as error:  # a decoder may raise anything for a stranger's bytes
                skipped, trouble = skipped + 1, f"{type(error).__name__}: {error}"
                if not logged:
                    log.warning("pretraining: skipped a sample of %s: %.200s", url, trouble)
                logged = True
                continue
            seed = generator("augment", config.seed, step, number).initial_seed()
            yield replace(row, reference=augmented(row.reference, seed), place=Place(shard, taken, skipped))
            step, fruitless = step + 1, 0
        if fruitless == FRUITLESS:
            raise ValueError(f"{FRUITLESS} shards in a row have no usable sample ({trouble:.200}); check the shards.")


def _samples(url: str, held: int, chance: random.Random) -> Iterator[Sample | Exception]:
    """A shard's samples, shuffled in a buffer of `held`; an incomplete sample of the tar file comes as an error."""
    broken: list[Exception] = []

    def note(error: Exception) -> bool:
        broken.append(error)
        return True  # and go on

    def whole(samples: Iterable[Sample]) -> Iterator[Sample | Exception]:
        for sample in samples:
            yield broken[0] if broken else sample
            broken.clear()
        yield from broken[:1]

    yield from webdataset.DataPipeline(
        webdataset.SimpleShardList([url]),
        webdataset.tarfile_to_samples(handler=note),
        whole,
        webdataset.shuffle(held, rng=chance),
    )


def usable(config: PretrainingConfig, tower_side: int) -> list[Row]:
    """The first few readable samples, not augmented, for the sheets. Raises ValueError if there are none."""
    urls, rows = addresses(config), list[Row]()
    samples = webdataset.DataPipeline(
        webdataset.SimpleShardList(urls), webdataset.tarfile_to_samples(handler=webdataset.ignore_and_continue)
    )
    for sample in samples:
        try:
            rows.append(decoded(sample, config, tower_side))
        except Exception:  # a decoder may raise anything for a stranger's bytes; the streams count these samples
            continue
        if len(rows) == config.sheet_rows:
            break
    if not rows:
        raise ValueError("the shards have no usable sample for a sheet; check the shards, or set sheet_every to 0.")
    return rows


def decoded(sample: Sample | Exception, config: PretrainingConfig, tower_side: int) -> Row:
    """Decode a sample into a row, without augmentation. Raises ValueError or a decoder's error if it is invalid."""
    if isinstance(sample, Exception):
        raise sample
    picture = _image(sample, "picture")
    reference = _image(sample, "reference") if _holds(sample, "reference") else picture
    mask = _image(sample, "mask").convert("L") if _holds(sample, "mask") else _transparency(reference)
    if mask.size != reference.size:
        raise ValueError(f"the mask is {mask.size}, but its picture is {reference.size}")
    if np.asarray(mask).max() <= PRESENT * 255:
        raise ValueError("the mask is empty")
    framed = frame(_pixels(reference.convert("RGB")).movedim(0, -1)[None], _pixels(mask), tower_side)[0][0]
    hint = _pixels(_square(_image(sample, "hint"), config.side)) if config.controlnet else None
    latent = _latent(sample) if config.latents else None
    caption = sample["txt"].decode().strip()
    return Row(
        picture=_pixels(_square(picture, config.side)),
        latent=latent,
        reference=rearrange(framed, "h w c -> c h w"),
        hint=hint,
        caption=caption,
        place=Place(),
    )


def _latent(sample: Sample) -> Tensor:
    latent = torch.from_numpy(np.load(io.BytesIO(sample["latent.npy"]), allow_pickle=False)).float()
    if latent.ndim != 3 or not torch.isfinite(latent).all():
        raise ValueError(f"the latent must be [C, h, w] and finite, but is {tuple(latent.shape)}")
    return latent


def _holds(sample: Sample, part: str) -> bool:
    return any(f"{part}.{kind}" in sample for kind in IMAGES)


def _image(sample: Sample, part: str) -> Image.Image:
    kind = next((kind for kind in IMAGES if f"{part}.{kind}" in sample), None)
    if kind is None:
        raise ValueError(f"{sample['__key__']} has no {part}")
    file = Image.open(io.BytesIO(sample[f"{part}.{kind}"]))
    file.load()
    image: Image.Image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):  # 16 bits, as in depth maps; PIL itself would clip every value above 255
        image = Image.fromarray((np.asarray(image, np.float32) / 257).round().astype(np.uint8))
    return image


def _transparency(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and "transparency" not in image.info:
        raise ValueError("the reference has neither a mask nor transparency")
    return image.convert("RGBA").getchannel("A")


def _square(image: Image.Image, side: int) -> Image.Image:
    """Crop to the middle square and resize, in RGB."""
    return ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)


def _pixels(image: Image.Image) -> Tensor:
    """The image as a tensor, [3 or 1, H, W] in 0..1."""
    pixels = torch.from_numpy(np.array(image)).float() / 255
    return pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0)
