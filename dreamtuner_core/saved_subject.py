"""A subject in one safetensors file, with what was learned of it and what may be done with it.

    picture, mask, latent                  as Subject holds them; without a mask there is none in the file
    caption.cross, caption.pooled          its caption, encoded
    encoding.tokens, encoding.without      what a subject encoder made of it
    word.<text encoder>                    S*
    view<n>.picture, .mask, .latent, ...   its other pictures, from 1 (version 2; without them a file is of version 1)

and in the metadata, under "subject", a JSON object of plain values. A file is foreign matter: its size and header are
looked at before anything of it is read. What it may hold says `SavedSubject`, for saving and for loading alike.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import plain_json, read_whole
from .subject import SIZE_STEP, Subject
from .texts import checked_class_word, checked_name, checked_text, shown
from .tuned_subject import TunedSubject

FORMAT, VERSION, WITH_VIEWS = "dreamtuner.subject", "1", "2"
MOST_VIEWS = 64  # other pictures of one subject
LARGEST_FILE = 512 * 2**20  # bytes
SIDES = (SIZE_STEP, 16384)  # pixels
CHANNELS = 64  # of a latent, at most
MOST_STEPS = 10**9  # of a tuning
TYPES = {torch.float32, torch.float16, torch.bfloat16}
TUNING = ("class_word", "name", "lora_hash", "steps")  # of a TunedSubject, as plain values
FIRST = {"caption": "cross", "encoding": "tokens"}  # parts of what may be there or not
SECOND = {"caption": "pooled", "encoding": "without"}


@dataclass(frozen=True)
class Rights:
    """Whose the subject is. until: the last day of the allowed uses, YYYY-MM-DD; empty texts say nothing."""

    owner: str = ""
    allowed_uses: str = ""
    until: str = ""

    def __post_init__(self) -> None:
        for item in fields(self):
            checked_text(item.name, getattr(self, item.name))
        try:
            datetime.date.fromisoformat(self.until or "2000-01-01")
        except ValueError:
            raise ValueError(
                f"until must be a day written as 2030-12-31, or empty, but is '{shown(self.until, 40)}'; write it so."
            ) from None

    def ended(self, today: datetime.date) -> bool:
        """Whether the last day of the allowed uses is past."""
        return bool(self.until) and today > datetime.date.fromisoformat(self.until)

    def told(self, today: datetime.date) -> str:
        """In plain words; empty where nothing is known."""
        parts = [
            self.owner and f"Owner: {self.owner}",
            self.allowed_uses and f"Allowed: {self.allowed_uses}",
            self.until and f"Until: {self.until}" + (" (this day is past)" if self.ended(today) else ""),
        ]
        return "\n".join(filter(None, parts))


@dataclass(frozen=True, eq=False)
class OwnedSubject(Subject):
    """A subject that carries its rights along. name: of its file, or empty."""

    name: str = ""
    rights: Rights = field(default_factory=Rights)
    caption_text: str = ""


def owned(subject: Subject, rights: Rights, name: str = "") -> OwnedSubject:
    """The same subject with these rights; one that has a name keeps it."""
    if isinstance(subject, OwnedSubject):
        return replace(subject, rights=rights)
    plain = {item.name: getattr(subject, item.name) for item in fields(Subject)}
    return OwnedSubject(**plain, name=name, rights=rights)


@dataclass(frozen=True)
class SavedSubject:
    """What a file holds. Raises ValueError, in one sentence, for what no subject is: the same limits both ways.

    picture: [1, H, W, 3] in 0..1, H and W multiples of 8. mask: [1, H, W] in 0..1, or None. latent: [1, C, H/8, W/8].
    caption: (cross [1, T, D], pooled [1, P] or None). words: S*, [D] by text encoder.
    tuning: class_word, name, lora_hash and steps of its TunedSubject; None where it was not tuned.
    encoding: (tokens [1, T, C], without [1, T, C] or None), with the name of the encoder's file, and its fingerprint.
    views: its other pictures, each with caption and noise seed alone.
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
        tensors = {
            name: x for name, x in self.tensors().items() if not name.startswith("view")
        }  # those check themselves
        _check_shapes(tensors)
        _check_values(tensors)
        if type(self.noise_seed) is not int or not 0 <= self.noise_seed < 2**64:
            raise ValueError(f"the noise seed must be a whole number in 0..2^64-1, but is {shown(self.noise_seed)}.")
        for name in ("caption_text", "encoder_name", "encoder_identity"):
            checked_text(name, getattr(self, name))
        if self.tuning is not None:
            _check_tuning(self.tuning)

    def tensors(self) -> dict[str, Tensor]:
        """By their names in a file."""
        named: dict[str, Tensor | None] = {"picture": self.picture, "mask": self.mask, "latent": self.latent}
        for name, pair in (("caption", self.caption), ("encoding", self.encoding)):
            first, second = pair or (None, None)
            named |= {f"{name}.{FIRST[name]}": first, f"{name}.{SECOND[name]}": second}
        named |= {f"word.{name}": word for name, word in self.words.items()}
        for number, view in enumerate(self.views, start=1):
            named |= {f"{_prefix(number)}{name}": x for name, x in view.tensors().items()}
        return {name: x for name, x in named.items() if x is not None}


def saved(
    subject: Subject, tuned: TunedSubject | None, rights: Rights, caption_text: str, encoder_identity: str = ""
) -> SavedSubject:
    """What a file holds of a subject."""
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


def to_file(content: SavedSubject) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata."""
    plain: dict[str, Any] = {
        "noise_seed": content.noise_seed,
        "caption_text": content.caption_text,
        "rights": asdict(content.rights),
        "tuning": None if content.tuning is None else dict(content.tuning),
        "encoder_name": content.encoder_name,
        "encoder_identity": content.encoder_identity,
    }
    version = VERSION
    if content.views:
        version, plain["views"] = WITH_VIEWS, [{"noise_seed": view.noise_seed} for view in content.views]
    metadata = {"format": FORMAT, "version": version, "subject": json.dumps(plain, ensure_ascii=False)}
    return {name: x.detach().cpu().contiguous().clone() for name, x in content.tensors().items()}, metadata


def from_file(path: str | os.PathLike[str]) -> SavedSubject:
    """What a file holds. Raises ValueError, in one sentence that names it, for one that is no whole subject."""
    name = shown(Path(path).name)
    try:
        if Path(path).stat().st_size > LARGEST_FILE:
            raise ValueError(f"the file is larger than {LARGEST_FILE >> 20} MiB, which no subject is")
        tensors, metadata = read_whole(path)
        return _built(tensors, _plain(metadata))
    except (OSError, ValueError) as error:
        why = str(error).rstrip(".")
        raise ValueError(
            f"'{name}' cannot be loaded as a subject: {why}; save the subject again with Save Subject."
        ) from error


def _plain(metadata: Mapping[str, str]) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        raise ValueError("it is not a saved subject")
    version = metadata.get("version")
    if version not in (VERSION, WITH_VIEWS):
        raise ValueError(f"it is of version {shown(version, 20)}, and this pack reads {VERSION} and {WITH_VIEWS}")
    plain = plain_json(metadata.get("subject"))
    if not isinstance(plain, dict) or not isinstance(plain.get("rights"), dict):
        raise ValueError("it does not say what it holds")
    views = plain.get("views", []) if version == WITH_VIEWS else []
    if not isinstance(views, list) or not all(isinstance(view, dict) for view in views) or len(views) > MOST_VIEWS:
        raise ValueError("it does not say which other pictures it holds")
    plain["views"] = views
    return plain


def _built(tensors: dict[str, Tensor], plain: Mapping[str, Any]) -> SavedSubject:
    views = tuple(
        _built(_taken(tensors, _prefix(number)), {"rights": {}, "noise_seed": view.get("noise_seed", -1)})
        for number, view in enumerate(plain.get("views", ()), start=1)
    )
    tuning = plain.get("tuning")
    if isinstance(tuning, dict):
        tuning = {name: tuning[name] for name in TUNING if name in tuning}  # what a newer version may add is left out
    pairs: dict[str, tuple[Tensor, Tensor | None] | None] = {}
    for name in FIRST:
        first, second = (tensors.pop(f"{name}.{part[name]}", None) for part in (FIRST, SECOND))
        if first is None and second is not None:
            raise ValueError(f"it holds half of its {name}")
        pairs[name] = None if first is None else (first, second)
    picture, mask, latent = (tensors.pop(name, None) for name in ("picture", "mask", "latent"))
    if picture is None or latent is None:
        raise ValueError("it holds no picture and latent that go together")
    strange = next((name for name in tensors if not name.startswith("word.")), None)
    if strange is not None:
        raise ValueError(f"it holds '{shown(strange, 40)}', which a subject does not have")
    return SavedSubject(
        picture=picture,
        mask=mask,
        latent=latent,
        caption=pairs["caption"],
        noise_seed=plain.get("noise_seed", -1),  # checked there, as all the rest is
        rights=Rights(**{item.name: plain["rights"].get(item.name, "") for item in fields(Rights)}),
        caption_text=plain.get("caption_text", ""),
        tuning=tuning,
        words={name.removeprefix("word."): x for name, x in tensors.items()},
        encoding=pairs["encoding"],
        encoder_name=plain.get("encoder_name", ""),
        encoder_identity=plain.get("encoder_identity", ""),
        views=views,
    )


def _prefix(number: int) -> str:
    return f"view{number}."


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of that prefix, without it; they are gone from the others then."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}


def _check_views(content: SavedSubject) -> None:
    """They are pictures alone, and fit the first and the file."""
    for view in content.views:
        if view.views or view.words or view.encoding is not None:
            raise ValueError("another picture of the subject holds more than a picture; combine the subjects again.")
        if view.latent.shape[1] != content.latent.shape[1]:
            raise ValueError("the subject's pictures are of different VAEs; encode all with the same checkpoint.")
    whole = sum(x.nbytes for x in content.tensors().values())
    if len(content.views) > MOST_VIEWS or (content.views and whole > LARGEST_FILE - 2**20):
        raise ValueError(
            f"a saved subject has at most {MOST_VIEWS} more pictures and {LARGEST_FILE >> 20} MiB; combine fewer."
        )


def _check_shapes(tensors: Mapping[str, Tensor]) -> None:
    """Names, shapes and types, and the bytes of all together."""
    height, width = (*tensors["picture"].shape, 0, 0, 0)[1:3]
    grid = (height // SIZE_STEP, width // SIZE_STEP)
    if not all(SIDES[0] <= side <= SIDES[1] and side % SIZE_STEP == 0 for side in (height, width)):
        raise ValueError(
            f"the picture's sides must be multiples of {SIZE_STEP} in {SIDES[0]}..{SIDES[1]} pixels, but it has the "
            f"shape {_shape(tensors['picture'])}."
        )
    if tensors["latent"].shape[2:] != grid:
        raise ValueError(f"the picture and latent must go together, but the latent is {_shape(tensors['latent'])}.")
    for name, x in tensors.items():
        kind, _, part = name.partition(".")
        fits = {
            "picture": x.shape == (1, height, width, 3),
            "mask": x.shape == (1, height, width),
            "latent": x.ndim == 4 and len(x) == 1 and x.shape[1] <= CHANNELS,
            "caption": x.ndim == (3 if part == "cross" else 2) and len(x) == 1,
            "encoding": x.ndim == 3 and len(x) == 1,
            "word": 0 < len(part) <= 8 and part.isalnum() and x.ndim == 1,
        }[kind]
        if not fits or x.dtype not in TYPES or x.numel() == 0:
            raise ValueError(
                f"'{shown(name, 40)}' of a subject cannot be of shape {_shape(x)} and type {x.dtype}; encode the "
                "picture again."
            )
    if sum(x.nbytes for x in tensors.values()) > LARGEST_FILE - 2**20:
        raise ValueError(f"the subject is larger than {LARGEST_FILE >> 20} MiB; encode it at a smaller resolution.")


def _shape(x: Tensor) -> str:
    return shown("x".join(map(str, x.shape[:8])) + ("x..." if x.ndim > 8 else "") or "a single number")


def _check_values(tensors: Mapping[str, Tensor]) -> None:
    bad = next((name for name, x in tensors.items() if not torch.isfinite(x).all()), None)
    if bad is not None:
        raise ValueError(f"the values in '{shown(bad, 40)}' are no numbers; encode the picture again.")
    for name in ("picture", "mask"):
        if name in tensors and not (tensors[name].min() >= 0 and tensors[name].max() <= 1):
            raise ValueError(f"the {name} has values that are not in 0..1; encode the picture again.")


def _check_tuning(tuning: Any) -> None:
    if not isinstance(tuning, Mapping) or set(tuning) != set(TUNING):
        raise ValueError("it does not say how it was tuned")
    checked_name(tuning["name"], "tuned subject's name")
    checked_class_word(tuning["class_word"])
    checked_text("the LoRA's hash", tuning["lora_hash"], 64)
    if type(tuning["steps"]) is not int or not 0 <= tuning["steps"] <= MOST_STEPS:
        raise ValueError(f"the steps of its tuning must be a whole number, but are {shown(tuning['steps'])}")
