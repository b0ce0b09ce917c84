"""Hashes of models, subjects and settings that are the same in every session: keys for results stored on disk.

Of each weight, name, shape, type and about a thousand values are hashed, spread over the whole tensor: fast for
gigabytes. Models that differ by training, merging or a LoRA differ in these values.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import comfy.weight_adapter
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..subject import Subject
from .settings import KEY

VALUES = 1024  # of each weight


class Fingerprint:
    """A hash of several values, added one by one."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, *values: Any) -> Fingerprint:
        """Add plain values, and tensors with all their values."""
        for value in values:
            if isinstance(value, Tensor):
                plain = value.detach().cpu().contiguous()
                self._text(f"{plain.dtype} {tuple(plain.shape)}")
                self._hash.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
            else:
                self._text(json.dumps(value, sort_keys=True, default=str))
        return self

    def look_at(self, name: str, weight: Tensor) -> Fingerprint:
        """Add some of a weight's values."""
        flat = weight.detach().reshape(-1)
        stride = max(1, flat.numel() // VALUES)
        self._text(f"{name} {weight.dtype} {tuple(weight.shape)}")
        seen = flat[::stride].cpu().contiguous()
        self._hash.update(seen.view(torch.uint8).numpy().tobytes())
        return self

    def text(self) -> str:
        """64 hexadecimal digits."""
        return self._hash.hexdigest()

    def _text(self, text: str) -> None:
        self._hash.update(text.encode() + b"\0")


def of_network(network: nn.Module) -> str:
    """Of a network that nothing patches, such as a VAE, by its weights."""
    fingerprint = Fingerprint()
    for name, weight in sorted(network.state_dict().items()):
        fingerprint.look_at(name, weight)
    return fingerprint.text()


def of_model(patcher: ModelPatcher) -> str:
    """Of a model or CLIP: its original weights, its patches (LoRA) with their strengths, and its sampling settings."""
    fingerprint = Fingerprint().add(type(patcher.model).__name__)
    for key, weight in sorted(patcher.model_state_dict().items()):  # the host's get_key_patches knows no quantised ones
        if key in patcher.hook_backup:
            weight = patcher.hook_backup[key][0]
        elif key in patcher.backup:
            weight = patcher.backup[key].weight
        fingerprint.look_at(key, getattr(weight, "_qdata", weight))  # what a quantised one is stored as
        for strength, patch, of_weight, offset, _ in patcher.patches.get(key, ()):
            fingerprint.add(strength, of_weight, offset)
            _look_at_patch(fingerprint, patch)
    sampling = patcher.get_model_object("model_sampling") if hasattr(patcher.model, "model_sampling") else None
    if sampling is not None:
        fingerprint.add([base.__name__ for base in type(sampling).__mro__]).add(sampling.sigmas)
    return fingerprint.text()


def of_patches(patcher: ModelPatcher) -> str:
    """Of everything else on a model that affects sampling: other packs' patches by name, our own settings in full."""
    transformer = patcher.model_options.get("transformer_options", {})
    fingerprint = Fingerprint().add(sorted(map(str, transformer.get("patches", {}))))
    replaced = transformer.get("patches_replace", {})
    fingerprint.add({str(kind): sorted(map(str, found)) for kind, found in replaced.items()})
    fingerprint.add({str(kind): sorted(map(str, found)) for kind, found in patcher.wrappers.items() if found})
    fingerprint.add(sorted(map(str, patcher.attachments)), sorted(key for key in patcher.model_options))
    settings = patcher.get_attachment(KEY)
    if settings is not None:
        for applied in settings.subjects:
            fingerprint.add(of_subject(applied.subject), applied.weight, applied.start, applied.end)
            fingerprint.add(applied.negative_weight, applied.end_weight, applied.blocks)
            fingerprint.add(*([] if applied.region is None else [applied.region]))
        for encoder in settings.encoders:
            fingerprint.add(of_subject(encoder.subject), encoder.strength, encoder.start, encoder.end)
        fingerprint.add(settings.guidance)
    return fingerprint.text()


def of_subject(subject: Subject) -> str:
    """Of everything that the subject's effect depends on."""
    fingerprint = Fingerprint().add(subject.picture, subject.latent, subject.noise_seed)
    fingerprint.add("no mask" if subject.mask is None else subject.mask)
    for cross, more in subject.caption or []:
        fingerprint.add(cross, *([] if more.get("pooled_output") is None else [more["pooled_output"]]))
    encoding = subject.encoding
    if encoding is not None:
        fingerprint.add(encoding.tokens, *([] if encoding.without is None else [encoding.without]))
    fingerprint.add(*(of_subject(view) for view in subject.views))
    return fingerprint.text()


def _look_at_patch(fingerprint: Fingerprint, patch: Any) -> None:
    if isinstance(patch, comfy.weight_adapter.WeightAdapterBase):
        fingerprint.add(patch.name)
        patch = patch.weights
    if isinstance(patch, Tensor):
        fingerprint.look_at("", patch)
    elif isinstance(patch, (tuple, list)):
        for part in patch:
            _look_at_patch(fingerprint, part)
    else:
        fingerprint.add(patch)
