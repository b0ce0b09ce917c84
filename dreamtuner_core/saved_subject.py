"""A subject in one safetensors file, with what was learned of it and what may be done with it.

    picture, mask, latent                  as Subject holds them; without a mask there is none in the file
    caption.cross, caption.pooled          its caption, encoded
    encoding.tokens, encoding.without      what a subject encoder made of it
    word.<text encoder>                    S*

and in the metadata, under "subject", a JSON object of plain values. A file is foreign matter: its names, shapes and
types are looked at before anything of it is read, and its numbers before anything is built of it.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .subject import SIZE_STEP, Subject
from .tuned_subject import TunedSubject

FORMAT, VERSION = "dreamtuner.subject", "1"
LARGEST_FILE = 512 * 2**20  # bytes
LONGEST_TEXT = 4000  # characters
SIDES = (SIZE_STEP, 4096)  # pixels
TYPES = {"F32", "F16", "BF16"}
TUNING = {"class_word": str, "name": str, "lora_hash": str, "steps": int}  # of a TunedSubject, as plain values
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
            text = getattr(self, item.name)
            if not isinstance(text, str) or len(text) > LONGEST_TEXT:
                raise ValueError(f"{item.name} must be a text of at most {LONGEST_TEXT} characters.")
        try:
            datetime.date.fromisoformat(self.until or "2000-01-01")
        except ValueError:
            raise ValueError(f"until must be a day as 2030-12-31, or empty, but is {self.until[:40]!r}.") from None

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
    """A subject that came out of a file, and carries its rights along. name: of the file."""

    name: str = ""
    rights: Rights = field(default_factory=Rights)
    caption_text: str = ""


@dataclass(frozen=True)
class SavedSubject:
    """What a file holds. words: S*, [D] by text encoder. The caption is (cross [1, T, D], pooled [1, P] or None).

    tuning: class_word, name, lora_hash and steps of its TunedSubject; None where it was not tuned.
    encoding: (tokens, without or None), the name of the encoder's file, and what tells its weights from others'.
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
        subject.picture,
        subject.mask,
        subject.latent,
        caption,
        subject.noise_seed,
        rights,
        caption_text,
        None if tuned is None else {name: getattr(tuned, name) for name in TUNING},
        tuned.words if tuned else {},
        None if encoding is None else (encoding.tokens, encoding.without),
        "" if encoding is None else encoding.encoder.name,
        encoder_identity,
    )


def to_file(content: SavedSubject) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata."""
    tensors = {"picture": content.picture, "mask": content.mask, "latent": content.latent}
    for name, pair in (("caption", content.caption), ("encoding", content.encoding)):
        first, second = pair or (None, None)
        tensors |= {f"{name}.{FIRST[name]}": first, f"{name}.{SECOND[name]}": second}
    tensors |= {f"word.{name}": word for name, word in content.words.items()}
    plain = {
        "noise_seed": content.noise_seed,
        "caption_text": content.caption_text,
        "rights": asdict(content.rights),
        "tuning": content.tuning,
        "encoder_name": content.encoder_name,
        "encoder_identity": content.encoder_identity,
    }
    metadata = {"format": FORMAT, "version": VERSION, "subject": json.dumps(plain, ensure_ascii=False)}
    return {k: x.detach().cpu().contiguous().clone() for k, x in tensors.items() if x is not None}, metadata


def from_file(path: str | os.PathLike[str]) -> SavedSubject:
    """What a file holds. Raises ValueError, in one sentence that names it, for one that is no whole subject."""
    name = Path(path).name
    try:
        if Path(path).stat().st_size > LARGEST_FILE:
            raise ValueError(f"is larger than {LARGEST_FILE >> 20} MiB, which no subject is")
        with safe_open(path, framework="pt", device="cpu") as file:
            plain = _plain(file.metadata() or {})
            _check_shapes({key: file.get_slice(key) for key in list(file.keys())})
            tensors = {key: file.get_tensor(key).clone() for key in list(file.keys())}
        return _built(tensors, plain)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{name}' is no whole safetensors file; take it anew from where it comes from.") from error
    except ValueError as error:
        raise ValueError(f"'{name}' {error}; save the subject anew with Save Subject.") from error


def _plain(metadata: Mapping[str, str]) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        raise ValueError("is not a saved subject")
    if metadata.get("version") != VERSION:
        raise ValueError(f"is of version {metadata.get('version')!s:.20}, and this pack reads version {VERSION}")
    try:
        plain = json.loads(metadata.get("subject", ""))
    except (ValueError, RecursionError):
        plain = None
    if not isinstance(plain, dict) or not isinstance(plain.get("rights"), dict):
        raise ValueError("does not say what it holds")
    return plain


def _check_shapes(slices: Mapping[str, Any]) -> None:
    shapes = {name: tuple(found.get_shape()) for name, found in slices.items()}
    height, width = (*shapes.get("picture", ()), 0, 0, 0)[1:3]
    sides = all(SIDES[0] <= side <= SIDES[1] and side % SIZE_STEP == 0 for side in (height, width))
    if not sides or shapes.get("latent", ())[2:] != (height // SIZE_STEP, width // SIZE_STEP):
        raise ValueError("holds no picture and latent that go together")
    for name, shape in shapes.items():
        kind, _, part = name.partition(".")
        known = {
            "picture": shape == (1, height, width, 3),
            "mask": shape == (1, height, width),
            "latent": len(shape) == 4 and shape[0] == 1 and 0 < shape[1] <= 64,
            "caption": part in ("cross", "pooled") and len(shape) == (3 if part == "cross" else 2) and shape[0] == 1,
            "encoding": part in ("tokens", "without") and len(shape) == 3 and shape[0] == 1,
            "word": 0 < len(part) <= 8 and part.isalnum() and len(shape) == 1,
        }
        if not known.get(kind, False) or slices[name].get_dtype() not in TYPES or 0 in shape:
            raise ValueError(f"holds {name[:40]!r} of shape {shape}, which a subject does not have")


def _built(tensors: dict[str, Tensor], plain: Mapping[str, Any]) -> SavedSubject:
    bad = next((name for name, x in tensors.items() if not torch.isfinite(x).all()), None)
    if bad is not None:
        raise ValueError(f"holds values that are no numbers in {bad!r}")
    for name in ("picture", "mask"):
        if name in tensors and not (tensors[name].min() >= 0 and tensors[name].max() <= 1):
            raise ValueError(f"holds a {name} that is not in 0..1")
    rights = {item.name: plain["rights"].get(item.name, "") for item in fields(Rights)}
    noise_seed, caption_text = plain.get("noise_seed"), plain.get("caption_text", "")
    encoder = [plain.get(name, "") for name in ("encoder_name", "encoder_identity")]
    if not isinstance(noise_seed, int) or not 0 <= noise_seed < 2**64:
        raise ValueError("holds no noise seed")
    if not all(isinstance(text, str) and len(text) <= LONGEST_TEXT for text in (caption_text, *encoder)):
        raise ValueError("holds a text that is too long, or none")
    pairs: dict[str, tuple[Tensor, Tensor | None] | None] = {}
    for name in FIRST:
        first, second = tensors.get(f"{name}.{FIRST[name]}"), tensors.get(f"{name}.{SECOND[name]}")
        pairs[name] = None if first is None else (first, second)
    return SavedSubject(
        tensors["picture"],
        tensors.get("mask"),
        tensors["latent"],
        pairs["caption"],
        noise_seed,
        Rights(**rights),
        caption_text,
        _tuning(plain.get("tuning")),
        {name.removeprefix("word."): x for name, x in tensors.items() if name.startswith("word.")},
        pairs["encoding"],
        *encoder,
    )


def _tuning(found: Any) -> dict[str, Any] | None:
    if found is None:
        return None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), kind) for name, kind in TUNING.items()):
        raise ValueError("does not say how it was tuned")
    if any(len(str(found[name])) > LONGEST_TEXT for name in TUNING):
        raise ValueError("holds a text that is too long")
    return {name: found[name] for name in TUNING}
