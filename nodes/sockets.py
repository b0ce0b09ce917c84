"""What may come in through a node's sockets, by its own schema: another pack may give anything under their names.

Numbers, choices and texts are checked where their limits are known (dreamtuner_core/ranges.py, texts.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..dreamtuner_core.host.encoder.load import LoadedEncoder
from ..dreamtuner_core.subject import Subject
from ..dreamtuner_core.texts import shown
from ..dreamtuner_core.tuned_subject import TunedSubject
from .common import named_errors

TYPES = {torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int32, torch.int64, torch.bool}


class Kind(NamedTuple):
    """what: in words. fits: whether a thing is of it."""

    what: str
    fits: Callable[[Any], bool]


def _numbers(thing: Any, dimensions: int) -> bool:
    """Whether that is a plain tensor of numbers with so many dimensions or more."""
    plain = isinstance(thing, Tensor) and thing.layout is torch.strided and thing.ndim >= dimensions
    return plain and thing.dtype in TYPES


def _texts(thing: Any) -> bool:
    pairs = isinstance(thing, (list, tuple)) and all(isinstance(one, (list, tuple)) and len(one) == 2 for one in thing)
    return pairs and all(_numbers(cross, 3) and cross.numel() and isinstance(more, dict) for cross, more in thing)


def _latent(thing: Any) -> bool:
    samples: Any = thing.get("samples") if isinstance(thing, dict) else None
    return _numbers(samples, 4) and samples.ndim == 4 and samples.numel() > 0


KINDS = {
    "MODEL": Kind("a model", lambda thing: isinstance(thing, ModelPatcher)),
    "CLIP": Kind("a text encoder (CLIP)", lambda thing: callable(getattr(thing, "tokenize", None))),
    "VAE": Kind("a VAE", lambda thing: callable(getattr(thing, "encode", None)) and not isinstance(thing, str)),
    "CLIP_VISION": Kind("an image tower (CLIP_VISION)", lambda thing: hasattr(thing, "model")),
    "IMAGE": Kind("pictures (IMAGE)", lambda thing: _numbers(thing, 0)),
    "MASK": Kind("a mask of rows and columns (MASK)", lambda thing: _numbers(thing, 2)),
    "LATENT": Kind("a latent", _latent),
    "CONDITIONING": Kind("an encoded text (CONDITIONING)", _texts),
    "DREAMTUNER_SUBJECT": Kind(
        "what Encode Subject Image or Load Subject gives", lambda thing: isinstance(thing, Subject)
    ),
    "DREAMTUNER_SUBJECT_ENCODER": Kind(
        "what Load Subject Encoder gives", lambda thing: isinstance(thing, LoadedEncoder)
    ),
    "DREAMTUNER_TUNED_SUBJECT": Kind(
        "what Subject Tuning or Load Subject gives", lambda thing: isinstance(thing, TunedSubject)
    ),
}


def checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """A node's `execute` that looks at what came in first, and whose errors begin with the node's name."""
    signature = inspect.signature(execute)

    @wraps(execute)
    def run(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> io.NodeOutput:
        schema = cls.SCHEMA or cls.define_schema()
        with named_errors(schema.display_name):
            _check(schema, _by_name(signature.bind(cls, *args, **kwargs)))
            return execute(cls, *args, **kwargs)

    return run


def _by_name(call: inspect.BoundArguments) -> dict[str, Any]:
    rest = next((p.name for p in call.signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
    return {**call.arguments, **call.arguments.get(rest, {})}


def _check(schema: io.Schema, given: Mapping[str, Any]) -> None:
    """Raise ValueError, in one sentence, for an input of another kind than the schema says."""
    for one in schema.inputs:
        thing, kind = given.get(one.id), KINDS.get(str(one.io_type))
        if kind is not None and not kind.fits(thing) and not (thing is None and one.optional):
            raise ValueError(f"expected {kind.what} on {one.id}, but got {_said(thing)}; link what gives one.")


def _said(thing: Any) -> str:
    if thing is None:
        return "nothing"
    if isinstance(thing, Tensor):
        return f"a {thing.dtype} tensor of shape {shown(tuple(thing.shape))}".replace("torch.", "")
    if isinstance(thing, str):
        return f"'{shown(thing, 40)}'"
    return f"a {shown(type(thing).__name__)}"
