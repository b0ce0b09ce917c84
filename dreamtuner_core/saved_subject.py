"""The content of a saved subject, and its limits, which are the same for saving and for loading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .rights import Rights
from .subject import SIZE_STEP, Subject
from .texts import checked_class_word, checked_name, checked_text, shown
from .tuned_subject import TunedSubject

MOST_VIEWS = 64  # other pictures of one subject
LARGEST_FILE = 512 * 2**20  # bytes
SIDES = (SIZE_STEP, 16384)  # pixels
CHANNELS = 64  # of a latent, at most
MOST_STEPS = 10**9  # of a tuning
TYPES = {torch.float32, torch.float16, torch.bfloat16}
TUNING = ("class_word", "name", "lora_hash", "steps")  # of a TunedSubject, as plain values
FIRST = {"caption": "cross", "encoding": "tokens"}  # of an optional pair, its first tensor's name
SECOND = {"caption": "pooled", "encoding": "without"}  # and the second's


@dataclass(frozen=True)
class SavedSubject:
    """The content of a subject's file. Raises ValueError, in one sentence, for an invalid subject.

    picture: [1, H, W, 3] in 0..1, H and W multiples of 8. mask: [1, H, W] in 0..1, or None. latent: [1, C, H/8, W/8].
    caption: (cross [1, T, D], pooled [1, P] or None). words: S*, [D] by text encoder.
    tuning: class_word, name, lora_hash and steps of its TunedSubject; None if it was not tuned.
    encoding: (tokens [1, T, C], without [1, T, C] or None). encoder_name, encoder_identity: file and fingerprint.
    views: its other pictures, each with only a caption and a noise seed.
    """

    picture: Tensor
    mask: Tensor | None
    latent: Tensor
    caption: tuple[Tensor, Tensor | None] | None
    noise_seed: int
    rights: Rights = field(default_factory=Rights)
    caption_text: str = ""
    tuning: Mapping[str, Any] | None = None
    words: Mapping[str, Tensor] = field(default_factory=dict)
    encoding: tuple[Tensor, Tensor | None] | None = None
    encoder_name: str = ""
    encoder_identity: str = ""
    views: tuple[SavedSubject, ...] = ()

    def __post_init__(self) -> None:
        _check_views(self)
        own = {name: x for name, x in self.tensors().items() if not name.startswith("view")}  # views check themselves
        _check_sides(self.picture, self.latent)
        _check_shapes(own)
        _check_values(own)
        if type(self.noise_seed) is not int or not 0 <= self.noise_seed < 2**64:
            raise ValueError(f"the noise seed must be a whole number in 0..2^64-1, but is {shown(self.noise_seed)}.")
        for name in ("caption_text", "encoder_name", "encoder_identity"):
            checked_text(name, getattr(self, name))
        if self.tuning is not None:
            _check_tuning(self.tuning)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in a file."""
        named: dict[str, Tensor | None] = {"picture": self.picture, "mask": self.mask, "latent": self.latent}
        for name, pair in (("caption", self.caption), ("encoding", self.encoding)):
            first, second = pair or (None, None)
            named |= {f"{name}.{FIRST[name]}": first, f"{name}.{SECOND[name]}": second}
        named |= {f"word.{name}": word for name, word in self.words.items()}
        for number, view in enumerate(self.views, start=1):
            named |= {f"{view_prefix(number)}{name}": x for name, x in view.tensors().items()}
        return {name: x for name, x in named.items() if x is not None}


def saved(
    subject: Subject, tuned: TunedSubject | None, rights: Rights, caption_text: str, encoder_identity: str = ""
) -> SavedSubject:
    """The content of a file for this subject."""
    caption = None
    if subject.caption is not None:
        cross, more = subject.caption[0]
        caption = cross, more.get("pooled_output")
    encoding = subject.encoding
    return SavedSubject(
        picture=subject.picture,
        mask=subject.mask,
        latent=subject.latent,
        caption=caption,
        noise_seed=subject.noise_seed,
        rights=rights,
        caption_text=caption_text,
        tuning=None if tuned is None else {name: getattr(tuned, name) for name in TUNING},
        words=tuned.words if tuned else {},
        encoding=None if encoding is None else (encoding.tokens, encoding.without),
        encoder_name="" if encoding is None else encoding.encoder.name,
        encoder_identity=encoder_identity,
        views=tuple(saved(replace(view, encoding=None), None, Rights(), "") for view in subject.views),
    )


def view_prefix(number: int) -> str:
    """The prefix of that view's tensor names. number: counted from 1."""
    return f"view{number}."


def _check_views(content: SavedSubject) -> None:
    """Check that views are plain pictures, and fit the main picture and the size of a file."""
    for view in content.views:
        if view.views or view.words or view.encoding is not None:
            raise ValueError("another picture of the subject has more than a picture; combine the subjects again.")
        if view.latent.shape[1:2] != content.latent.shape[1:2]:
            raise ValueError("the subject's pictures are of different VAEs; encode all with the same checkpoint.")
    size = sum(x.nbytes for x in content.tensors().values())
    if len(content.views) > MOST_VIEWS or (content.views and size > LARGEST_FILE - 2**20):
        raise ValueError(
            f"a saved subject may have {MOST_VIEWS} other pictures and {LARGEST_FILE >> 20} MiB, but this one has "
            f"{len(content.views)} and {size >> 20} MiB; combine fewer."
        )


def _check_sides(picture: Tensor, latent: Tensor) -> None:
    height, width = (*picture.shape, 0, 0, 0)[1:3]
    if not all(SIDES[0] <= side <= SIDES[1] and side % SIZE_STEP == 0 for side in (height, width)):
        raise ValueError(
            f"the picture's sides must be multiples of {SIZE_STEP} in {SIDES[0]}..{SIDES[1]} pixels, but it has the "
            f"shape {_shape(picture)}."
        )
    if latent.shape[2:] != (height // SIZE_STEP, width // SIZE_STEP):
        raise ValueError(
            f"the latent must have 1/{SIZE_STEP} of the picture's sides {height}x{width}, but its shape is "
            f"{_shape(latent)}."
        )


def _fits(name: str, x: Tensor, height: int, width: int) -> bool:
    """Whether the tensor of that name has a valid shape, for a picture of height x width."""
    kind, _, part = name.partition(".")
    return {
        "picture": x.shape == (1, height, width, 3),
        "mask": x.shape == (1, height, width),
        "latent": x.ndim == 4 and len(x) == 1 and x.shape[1] <= CHANNELS,
        "caption": x.ndim == (3 if part == "cross" else 2) and len(x) == 1,
        "encoding": x.ndim == 3 and len(x) == 1,
        "word": 0 < len(part) <= 8 and part.isalnum() and x.ndim == 1,
    }[kind]


def _check_shapes(tensors: Mapping[str, Tensor]) -> None:
    """Check shapes and types of all tensors, and their size together."""
    height, width = tensors["picture"].shape[1:3]
    for name, x in tensors.items():
        if not _fits(name, x, height, width) or x.dtype not in TYPES or x.numel() == 0:
            raise ValueError(
                f"'{shown(name, 40)}' of a subject cannot have the shape {_shape(x)} and type {x.dtype}; encode the "
                "picture again."
            )
    if sum(x.nbytes for x in tensors.values()) > LARGEST_FILE - 2**20:
        raise ValueError(f"the subject is larger than {LARGEST_FILE >> 20} MiB; encode it at a smaller resolution.")


def _shape(x: Tensor) -> str:
    return shown("x".join(map(str, x.shape[:8])) + ("x..." if x.ndim > 8 else "") or "a single number")


def _check_values(tensors: Mapping[str, Tensor]) -> None:
    bad = next((name for name, x in tensors.items() if not torch.isfinite(x).all()), None)
    if bad is not None:
        raise ValueError(f"'{shown(bad, 40)}' has NaN or infinite values; encode the picture again.")
    for name in ("picture", "mask"):
        if name in tensors and not (tensors[name].min() >= 0 and tensors[name].max() <= 1):
            raise ValueError(f"the {name} has values outside 0..1; encode the picture again.")


def _check_tuning(tuning: Any) -> None:
    if not isinstance(tuning, Mapping) or set(tuning) != set(TUNING):
        raise ValueError(f"its tuning must have {', '.join(TUNING)}")
    checked_name(tuning["name"], "tuned subject's name")
    checked_class_word(tuning["class_word"])
    checked_text("the LoRA's hash", tuning["lora_hash"], 64)
    if type(tuning["steps"]) is not int or not 0 <= tuning["steps"] <= MOST_STEPS:
        raise ValueError(f"its tuning's steps must be a whole number in 0..10^9, but are {shown(tuning['steps'])}")
