"""One subject encoder in one safetensors file: its weights, and in the metadata what it is and what it is for.

Two layouts are read. Our own has a description in its metadata (`save`). An IP-Adapter has no useful metadata and is
recognised by its keys. A file may come from anywhere, so it is checked first: no network is built and no weight is read
before the names, shapes and types in the header match the configuration.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..files import check_header, plain_json, write_whole
from ..texts import reason, shown
from .ip_adapter import IPAdapter, IPAdapterConfig, is_ip_adapter
from .model import EncoderConfig, SubjectEncoder

FORMAT = "dreamtuner.subject_encoder"
VERSION = "1"
TYPES = {"F64", "F32", "F16", "BF16"}
MOST_WEIGHTS = 20_000  # names in a file


@dataclass(frozen=True)
class Origin:
    """Where an encoder comes from. training: how it was trained, plain values. licence: its terms, in words."""

    training: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""


def save(path: str | os.PathLike[str], encoder: SubjectEncoder, origin: Origin = Origin()) -> None:
    """Write the encoder, including its image tower, to that path. The file is complete or not written at all."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in encoder.state_dict().items()}
    write_whole(Path(path), lambda unfinished: save_file(weights, unfinished, metadata_of(encoder.config, origin)))


def metadata_of(config: EncoderConfig, origin: Origin) -> dict[str, str]:
    """The metadata of an encoder's file."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps(config.to_dict()),
        "training": json.dumps(dict(origin.training)),
        "licence": origin.licence,
    }


def read(
    path: str | os.PathLike[str], operations: Any = nn, dtype: torch.dtype | None = None
) -> tuple[SubjectEncoder | IPAdapter, Origin]:
    """Load the encoder from that file to the CPU. dtype: of its weights; None keeps the file's own.

    operations: a module with Linear, LayerNorm, ... (torch.nn, or the host's). Raises ValueError, in one sentence that
    says what the file is and what was expected, for a file that is incomplete, of an unknown kind, or holds NaN.
    """
    name = shown(Path(path).name)
    try:
        check_header(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            encoder, origin = _described(file, operations)
            weights = {key: file.get_tensor(key).clone() for key in list(file.keys())}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"'{name}' is not a complete safetensors file ({reason(error)}); download or copy it again."
        ) from error
    except ValueError as error:
        raise ValueError(f"'{name}' {error}") from error
    bad = next((key for key, weight in weights.items() if not torch.isfinite(weight).all()), None)
    if bad is not None:
        raise ValueError(f"'{name}' holds NaN or infinite values in {shown(bad)}; download or copy it again.")
    if dtype is not None:
        weights = {key: weight.to(dtype) for key, weight in weights.items()}
    encoder.load_state_dict(weights, assign=True)
    return encoder.eval().requires_grad_(False), origin


def _described(file: Any, operations: Any) -> tuple[SubjectEncoder | IPAdapter, Origin]:
    """Build the encoder from the header, without weights. Raises ValueError, without the file's name."""
    metadata, keys = file.metadata() or {}, list(file.keys())
    if len(keys) > MOST_WEIGHTS:
        raise ValueError(f"has {len(keys)} weights, and no subject encoder has more than {MOST_WEIGHTS}.")
    slices = {key: file.get_slice(key) for key in keys}
    shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
    origin = Origin()
    encoder: SubjectEncoder | IPAdapter
    if metadata.get("format") == FORMAT:
        encoder, origin = _own(metadata, operations)
    elif is_ip_adapter(keys):
        encoder = IPAdapter(IPAdapterConfig.from_shapes(shapes), operations, device="meta")
    else:
        raise ValueError(
            f"is no subject encoder (it begins with {shown(keys[:1])}): expected one that DreamTuner's pre-training "
            "saved, or an IP-Adapter of SD1.5 or SDXL (plain or plus)."
        )
    _check_types({key: part.get_dtype() for key, part in slices.items()})
    _check_shapes(shapes, {key: tuple(weight.shape) for key, weight in encoder.state_dict().items()})
    return encoder, origin


def _own(metadata: Mapping[str, str], operations: Any) -> tuple[SubjectEncoder, Origin]:
    """The encoder of a file from DreamTuner's own pre-training, without weights."""
    if metadata.get("version") != VERSION:
        raise ValueError(f"is of version {shown(metadata.get('version'))}, and this pack reads {VERSION}; update it.")
    config, training = (_loads(metadata, key) for key in ("config", "training"))
    try:
        encoder = SubjectEncoder(EncoderConfig.from_dict(config), operations, device="meta")
    except ValueError as error:
        raise ValueError(f"has a configuration that cannot be built: {error}") from error
    return encoder, Origin(training, metadata.get("licence", ""))


def _check_types(found: Mapping[str, str]) -> None:
    strange = next((key for key, kind in found.items() if kind not in TYPES), None)
    if strange is not None:
        raise ValueError(
            f"holds {shown(strange)} as {found[strange]}, but weights must be one of {', '.join(sorted(TYPES))}."
        )


def _check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    missing, unknown = (sorted(a.keys() - b.keys()) for a, b in ((expected, found), (found, expected)))
    if missing:
        raise ValueError(f"misses {len(missing)} of its {len(expected)} weights, such as {shown(missing[0])}.")
    if unknown:
        raise ValueError(f"holds {len(unknown)} weights that its kind does not have, such as {shown(unknown[0])}.")
    for key, shape in expected.items():
        if found[key] != shape:
            raise ValueError(f"holds {shown(key)} of shape {shown(found[key])}, but its kind has {shape}.")


def _loads(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    value = plain_json(metadata.get(key))
    if not isinstance(value, dict):
        raise ValueError(f"has no readable {key} in its metadata; download or copy it again.")
    return value
