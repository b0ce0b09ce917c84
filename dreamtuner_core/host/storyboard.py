"""Draw Storyboard: one picture for each line, which looks at its subjects and at the picture before (appendix B).

The latents are cached, so that after a change only the changed lines, and those that depend on them, are drawn again.
"""

from __future__ import annotations

import textwrap
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..picture.sheet import Cell, as_image, as_tensor, contact_sheet
from ..ranges import check_choice, check_number
from ..storyboard import Line, StoryboardConfig, previous_of
from ..subject import Subject
from .apply import apply_subject, check_text
from .fingerprint import Fingerprint
from .progress import say
from .subject.encode import encode_subject
from .subject.find import find_subject
from .subject.rights import tell_rights_of_run

LIMIT = 256 * 1024**2  # bytes of latents cached for one model: some thousand pictures of 1024 pixels
COLUMNS = 4  # of the sheet
SMALLEST, LARGEST = 64, 16384  # pixels of a picture's side


def blank(width: int, height: int) -> dict[str, Any]:
    """An empty LATENT for a picture of that size in pixels."""
    for name, side in (("width", width), ("height", height)):
        check_number(name, side, SMALLEST, LARGEST, whole=True)
    return {"samples": torch.zeros(1, 4, height // 8, width // 8)}


class KeptLatents:
    """A cache of latents by key, bounded in bytes; the least recently used is removed first."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._kept: OrderedDict[Any, tuple[Tensor, Any]] = OrderedDict()

    def get(self, key: Any) -> Tensor | None:
        """The latent [1, C, h, w] of that key, or None."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Any, latent: Tensor, alive: Any) -> None:
        """Add a latent [1, C, h, w]. alive: the object whose id is in the key, held so that no other gets that id."""
        self._kept[key] = latent, alive
        while sum(kept.nbytes for kept, _ in self._kept.values()) > self.limit:
            self._kept.popitem(last=False)


_kept: weakref.WeakKeyDictionary[ModelPatcher, KeptLatents] = weakref.WeakKeyDictionary()
"""By the linked model object itself: other packs' patches cannot be compared, so no other object is the same model."""


@dataclass(frozen=True, eq=False)
class Storyboard:
    """A story and what it is drawn with. lines: from `story`. latent: the host's LATENT, its samples [1, C, h, w]."""

    model: ModelPatcher
    clip: Any
    vae: Any
    subjects: Sequence[Subject]
    negative: Any
    latent: dict[str, Any]
    lines: Sequence[Line]
    config: StoryboardConfig

    def draw(self, node_id: str | None = None) -> tuple[Tensor, Tensor]:
        """The pictures [lines, H, W, 3] in 0..1, and a sheet of them [1, H', W', 3]. Cached lines are only decoded.

        Raises ValueError, in one sentence, for a model that cannot read the subjects or negative, several latents, or a
        sampler that the host does not have.
        """
        check_choice("sampler_name", self.config.sampler_name, comfy.samplers.SAMPLER_NAMES)
        check_choice("scheduler", self.config.scheduler, comfy.samplers.SCHEDULER_NAMES)
        if (batch := self.latent["samples"].shape[0]) != 1:
            raise ValueError(f"expected one latent, but got a batch of {batch}; each line is one picture.")
        empty = comfy.sample.fix_empty_latent_channels(self.model, self.latent["samples"])
        if (channels := empty.shape[1]) != (expected := self.model.model.latent_format.latent_channels):
            raise ValueError(
                f"the latent has {channels} channels, but this model works on {expected}; encode it with the "
                "checkpoint's own VAE."
            )
        check_text(self.model, "negative", self.negative)
        tell_rights_of_run(self.subjects)  # also for lines from the cache
        kept, progress = _kept.setdefault(self.model, KeptLatents()), Progress(self, node_id)
        keys: list[tuple] = []
        pictures: list[Tensor] = []
        for i in range(len(self.lines)):
            keys.append(self.key(i, keys))
            progress.line = i
            if (latent := kept.get(keys[i])) is None:
                latent = self.sample(i, pictures, progress)
                kept.put(keys[i], latent, self.negative)
            progress.step(self.config.steps)
            pictures.append(self.vae.decode(latent))
        return torch.cat(pictures), self.sheet(pictures)

    def sheet(self, pictures: Sequence[Tensor]) -> Tensor:
        """[1, H, W, 3]: every picture with the beginning of its line."""
        labels = [textwrap.shorten(f"{i}. {line.text}", 34, placeholder="...") for i, line in enumerate(self.lines, 1)]
        cells = [Cell(as_image(picture[0]), label) for picture, label in zip(pictures, labels)]
        return as_tensor(contact_sheet(cells, columns=min(len(cells), COLUMNS)))

    def previous(self, i: int) -> list[int]:
        """The earlier lines whose pictures line i looks at."""
        return previous_of(self.lines, i) if self.config.previous_weight > 0 else []

    def key(self, i: int, before: Sequence[tuple]) -> tuple:
        """Everything that line i depends on, besides the model. before: the keys of the earlier lines."""
        line, config = self.lines[i], self.config
        own = Fingerprint().add(line.text, config.seed_of(i), config.first_weight, config.steps, config.cfg)
        own.add(config.sampler_name, config.scheduler)
        for name, value in sorted(self.latent.items()):
            own.add(name, value)
        for j in self.previous(i):
            own.add(config.previous_weight, before[j][-1])
        linked = (self.clip, self.vae, *(self.subjects[who] for who in line.who))
        return (*map(weakref.ref, linked), id(self.negative), own.text())

    def sample(self, i: int, pictures: Sequence[Tensor], progress: Progress) -> Tensor:
        """[1, C, h, w]: line i, as the host's KSampler draws it. pictures: those of the earlier lines."""
        config, seed = self.config, self.config.seed_of(i)
        model = self.model
        for who in self.lines[i].who:
            model = apply_subject(model, self.subjects[who], config.first_weight)
        for j in self.previous(i):
            subject = self.seen_in(j, pictures[j])
            if subject is not None:
                model = apply_subject(model, subject, config.previous_weight)
        latent = comfy.sample.fix_empty_latent_channels(model, self.latent["samples"])
        return comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(latent, seed, self.latent.get("batch_index")),
            steps=config.steps,
            cfg=config.cfg,
            sampler_name=config.sampler_name,
            scheduler=config.scheduler,
            positive=self.conditioning(i),
            negative=self.negative,
            latent_image=latent,
            noise_mask=self.latent.get("noise_mask"),
            callback=progress.callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )

    def seen_in(self, i: int, picture: Tensor) -> Subject | None:
        """The subject that is found in the picture [1, H, W, 3] of line i, cut out; None if none is found."""
        mask = found_in(picture)
        if mask is None:
            return None
        like = self.subjects[self.lines[i].who[0]]
        return encode_subject(
            picture,
            self.vae,
            mask=mask,
            caption=self.conditioning(i)[:1],
            mask_marks="subject",
            resolution=round((like.picture.shape[1] * like.picture.shape[2]) ** 0.5),
            noise_seed=like.noise_seed,
        )[0]

    def conditioning(self, i: int) -> Any:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(self.lines[i].text))


class Progress:
    """The host's progress bar over all lines and steps, with the sampler's preview and a line of text."""

    def __init__(self, storyboard: Storyboard, node_id: str | None) -> None:
        self.lines, self.steps, self.node_id = len(storyboard.lines), storyboard.config.steps, node_id
        self.bar = comfy.utils.ProgressBar(self.lines * self.steps)
        model = storyboard.model
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self.line = 0

    def step(self, done: int, preview: Any = None) -> None:
        """So many steps of this line are done."""
        self.bar.update_absolute(self.line * self.steps + min(done, self.steps), preview=preview)
        say(f"line {self.line + 1} of {self.lines}, step {done} of {self.steps}", self.node_id)

    def callback(self, step: int, x0: Tensor, x: Tensor, steps: int) -> None:
        """The sampler's callback after each step. x0: the predicted latent [1, C, h, w]."""
        preview = self.previewer.decode_latent_to_preview_image("JPEG", x0) if self.previewer else None
        self.step(step + 1, preview)


def found_in(picture: Tensor) -> Tensor | None:
    """The MASK [1, H, W] of what is found in the picture [1, H, W, 3]; None if nothing is found."""
    mask = find_subject(picture)
    return mask if mask.max() > 0 else None
