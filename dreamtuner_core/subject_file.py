"""Reading and writing a SavedSubject as one safetensors file.

    picture, mask, latent                  as in Subject; the mask is optional
    caption.cross, caption.pooled          its encoded caption (optional)
    encoding.tokens, encoding.without      its encoding by a subject encoder (optional)
    word.<text encoder>                    S*
    view<n>.picture, .mask, .latent, ...   its other pictures, from 1 (version 2; without them a file is of version 1)

and in the metadata, under "subject", a JSON object of plain values. A file may come from anywhere, so its size and
header are checked before the rest is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from .files import plain_json, read_whole
from .rights import Rights
from .saved_subject import FIRST, LARGEST_FILE, MOST_VIEWS, SECOND, TUNING, SavedSubject, view_prefix
from .texts import reason, shown

FORMAT, VERSION, WITH_VIEWS = "dreamtuner.subject", "1", "2"


def to_file(content: SavedSubject) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of its file."""
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
    """Read a file. Raises ValueError, in one sentence with its name, if it is not a complete subject."""
    name = shown(Path(path).name)
    try:
        if Path(path).stat().st_size > LARGEST_FILE:
            raise ValueError(f"the file is larger than {LARGEST_FILE >> 20} MiB, the most that a subject may have")
        tensors, metadata = read_whole(path)
        return _built(tensors, _plain(metadata))
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error).rstrip(".")
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
        raise ValueError("its metadata do not describe a subject")
    views = plain.get("views", []) if version == WITH_VIEWS else []
    if not isinstance(views, list) or not all(isinstance(view, dict) for view in views) or len(views) > MOST_VIEWS:
        raise ValueError("its metadata do not describe its other pictures")
    plain["views"] = views
    return plain


def _built(tensors: dict[str, Tensor], plain: Mapping[str, Any]) -> SavedSubject:
    views = tuple(
        _built(_taken(tensors, view_prefix(number)), {"rights": {}, "noise_seed": view.get("noise_seed", -1)})
        for number, view in enumerate(plain.get("views", ()), start=1)
    )
    caption, encoding = (_pair(tensors, name) for name in ("caption", "encoding"))
    picture, mask, latent = (tensors.pop(name, None) for name in ("picture", "mask", "latent"))
    if picture is None or latent is None:
        raise ValueError("it lacks its picture or its latent")
    strange = next((name for name in tensors if not name.startswith("word.")), None)
    if strange is not None:
        raise ValueError(f"it has '{shown(strange, 40)}', which is not part of a subject")
    return SavedSubject(
        picture=picture,
        mask=mask,
        latent=latent,
        caption=caption,
        noise_seed=plain.get("noise_seed", -1),  # SavedSubject checks it, as it checks the rest
        rights=Rights(**{item.name: plain["rights"].get(item.name, "") for item in fields(Rights)}),
        caption_text=plain.get("caption_text", ""),
        tuning=_tuning(plain.get("tuning")),
        words={name.removeprefix("word."): x for name, x in tensors.items()},
        encoding=encoding,
        encoder_name=plain.get("encoder_name", ""),
        encoder_identity=plain.get("encoder_identity", ""),
        views=views,
    )


def _pair(tensors: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor | None] | None:
    """Caption or encoding, taken out of the tensors."""
    first, second = (tensors.pop(f"{name}.{part[name]}", None) for part in (FIRST, SECOND))
    if first is None and second is not None:
        raise ValueError(f"it has only half of its {name}")
    return None if first is None else (first, second)


def _tuning(plain: Any) -> Any:
    """Without entries that a newer version may have added; SavedSubject checks the rest."""
    return {name: plain[name] for name in TUNING if name in plain} if isinstance(plain, dict) else plain


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove the tensors with that prefix from the dictionary, and return them without the prefix."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
