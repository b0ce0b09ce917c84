"""Reference keys and values, kept per noise level: they depend on the reference, never on the new picture."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LIMIT = 2 * 1024**3  # bytes kept for one subject, over all noise levels and models


class LayerFeatures(NamedTuple):
    """k, v: [1, M, C] of the M foreground tokens of one layer; mask: [M], their m_r, above zero."""

    k: Tensor
    v: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> LayerFeatures:
        return LayerFeatures(*(x.to(device) for x in self))


Features = dict[Hashable, LayerFeatures]
"""What one reference pass leaves, by layer."""


def size(features: Features) -> int:
    """Bytes that the features take."""
    return sum(x.nbytes for layer in features.values() for x in layer)


@dataclass
class _Entry:
    features: Features
    device: torch.device
    last_run: int


class ReferenceBank:
    """The features of one subject by key, bounded in bytes.

    A run visits its noise levels in turn, so dropping the level used longest ago would leave the next run nothing.
    Only what neither this run nor the last one used makes room; when that is not enough, the new level is not kept.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._entries: dict[Hashable, _Entry] = {}
        self._run = 0

    def begin_run(self) -> None:
        """Count runs, so that what has gone out of use can be told."""
        self._run += 1

    def get(self, key: Hashable, device: torch.device) -> Features | None:
        """The features of that key on that device, or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.last_run = self._run
        if entry.device == device:
            return entry.features
        return {layer: kept.to(device) for layer, kept in entry.features.items()}

    def put(self, key: Hashable, features: Features, device: torch.device) -> bool:
        """Keep the features on that device, if there is room for them. True when kept."""
        self._entries.pop(key, None)
        needed = size(features)
        for old in sorted(self._entries, key=lambda k: self._entries[k].last_run):
            if self.nbytes() + needed <= self.limit or self._entries[old].last_run >= self._run - 1:
                break
            del self._entries[old]
        if self.nbytes() + needed > self.limit:
            return False
        self._entries[key] = _Entry({layer: kept.to(device) for layer, kept in features.items()}, device, self._run)
        return True

    def nbytes(self, device: torch.device | None = None) -> int:
        """Bytes kept, in all or on one device."""
        return sum(size(e.features) for e in self._entries.values() if device in (None, e.device))

    def move(self, source: torch.device, target: torch.device, amount: float = float("inf")) -> int:
        """Move entries from one device to another until so many bytes are free. Returns the bytes freed."""
        freed = 0
        for entry in self._entries.values():
            if freed >= amount:
                break
            if entry.device == source != target:
                freed += size(entry.features)
                entry.features = {layer: kept.to(target) for layer, kept in entry.features.items()}
                entry.device = target
        return freed

    def clear(self) -> None:
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)
