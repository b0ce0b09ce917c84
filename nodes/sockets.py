"""Checks what is linked to a node, by its own schema: another pack may send anything under a socket's name.

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
from ..dreamtuner_core.picture.checked import all_finite
from ..dreamtuner_core.subject import Subject
from ..dreamtuner_core.texts import shown
from ..dreamtuner_core.tuned_subject import TunedSubject
from .common import named_errors

TYPES = {torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int32, torch.int64, torch.bool}


class Kind(NamedTuple):
    """what: the kind, in words. fits: whether a value is of this kind."""

    what: str
    fits: Callable[[Any], bool]


def _numbers(value: Any, dimensions: int) -> bool:
    """Whether this is a dense tensor of numbers with so many dimensions or more."""
    dense = isinstance(value, Tensor) and value.layout is torch.strided and value.ndim >= dimensions
    return dense and value.dtype in TYPES


def _texts(value: Any) -> bool:
    pairs = isinstance(value, (list, tuple)) and all(isinstance(one, (list, tuple)) and len(one) == 2 for one in value)
    return pairs and all(_numbers(cross, 3) and cross.numel() and isinstance(more, dict) for cross, more in value)


def _latent(value: Any) -> bool:
    samples: Any = value.get("samples") if isinstance(value, dict) else None
    if not (_numbers(samples, 4) and samples.ndim == 4 and samples.numel() > 0):
        return False
    mask, of_batch = value.get("noise_mask"), value.get("batch_index")
    return (
        samples.is_floating_point()
        and all_finite(samples)
        and (mask is None or (_numbers(mask, 2) and mask.numel() > 0))
        and (of_batch is None or (isinstance(of_batch, list) and all(type(i) is int and i >= 0 for i in of_batch)))
    )


KINDS = {
    "MODEL": Kind("a model", lambda value: isinstance(value, ModelPatcher)),
    "CLIP": Kind("a text encoder (CLIP)", lambda value: callable(getattr(value, "tokenize", None))),
    "VAE": Kind("a VAE", lambda value: callable(getattr(value, "encode", None)) and not isinstance(value, str)),
    "CLIP_VISION": Kind("an image tower (CLIP_VISION)", lambda value: hasattr(value, "model")),
    "IMAGE": Kind("pictures (IMAGE)", lambda value: _numbers(value, 0)),
    "MASK": Kind("a mask of rows and columns (MASK)", lambda value: _numbers(value, 2)),
    "LATENT": Kind("the latent of pictures", _latent),
    "CONDITIONING": Kind("an encoded text (CONDITIONING)", _texts),
    "DREAMTUNER_SUBJECT": Kind(
        "the output of Encode Subject Image or Load Subject", lambda value: isinstance(value, Subject)
    ),
    "DREAMTUNER_SUBJECT_ENCODER": Kind(
        "the output of Load Subject Encoder", lambda value: isinstance(value, LoadedEncoder)
    ),
    "DREAMTUNER_TUNED_SUBJECT": Kind(
        "the output of Subject Tuning or Load Subject", lambda value: isinstance(value, TunedSubject)
    ),
}


def checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """A node's `execute` that first checks its inputs, and whose errors begin with the node's name."""
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
    """Raise ValueError, in one sentence, for an input of another kind than in the schema."""
    for one in schema.inputs:
        value, kind = given.get(one.id), KINDS.get(str(one.io_type))
        if kind is not None and not kind.fits(value) and not (value is None and one.optional):
            raise ValueError(f"expected {kind.what} on {one.id}, but got {_described(value)}; link the right output.")


def _described(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict) and isinstance(value.get("samples"), Tensor):
        return f"a latent of {_described(value['samples'])}, or with other odd parts"
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {shown(tuple(value.shape))}".replace("torch.", "")
    if isinstance(value, str):
        return f"'{shown(value, 40)}'"
    return f"a {shown(type(value).__name__)}"
