"""A cache of reference keys and values by noise level: they depend on the reference, never on the new image."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

KEPT_RUNS = 4  # an entry that so many runs in a row did not use is dropped


class LayerFeatures(NamedTuple):
    """k, v: [1, M, C] of the M foreground tokens of one layer; mask: [M], their m_r, above zero."""

    k: Tensor
    v: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> LayerFeatures:
        """A copy on that device; from a GPU into pinned memory, from which it returns faster."""
        return LayerFeatures(*(_moved(x, device) for x in self))


Features = dict[Hashable, LayerFeatures]
"""The result of one reference pass, by layer."""


def size(features: Features) -> int:
    """Bytes that the features take."""
    return sum(x.nbytes for layer in features.values() for x in layer)


def _moved(x: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu" and x.device.type == "cuda":
        return torch.empty_like(x, device=device, pin_memory=True).copy_(x)
    return x.to(device, non_blocking=device.type == "cuda")


@dataclass
class _Entry:
    features: Features
    device: torch.device
    last_run: int

    def move(self, device: torch.device) -> None:
        self.features = {layer: kept.to(device) for layer, kept in self.features.items()}
        self.device = device


_Place = tuple[dict[Hashable, _Entry], Hashable, _Entry]  # an entry, and where it is kept


class ReferenceBank:
    """A cache of reference features, by the latent x^r and by a key of everything else that they depend on.

    The latent is held by a weak reference: its features are freed with it. Entries that KEPT_RUNS runs did not use are
    dropped.
    """

    def __init__(self) -> None:
        self._by_latent: MutableMapping[Tensor, dict[Hashable, _Entry]] = WeakTensorKeyDictionary()
        self._run = 0

    def begin_run(self) -> None:
        """Count the runs, and drop entries that the last ones did not use."""
        self._run += 1
        for entries in self._by_latent.values():
            for key in [key for key, entry in entries.items() if entry.last_run < self._run - KEPT_RUNS]:
                del entries[key]

    def get(self, latent: Tensor, key: Hashable, device: torch.device) -> Features | None:
        """The features of that latent [1, C, h, w] and key, on that device, or None."""
        entry = self._by_latent.get(latent, {}).get(key)
        if entry is None:
            return None
        entry.last_run = self._run
        if entry.device == device:
            return entry.features
        return {layer: kept.to(device) for layer, kept in entry.features.items()}

    def put(self, latent: Tensor, key: Hashable, features: Features, device: torch.device) -> None:
        """Cache the features of that latent [1, C, h, w] and key, on that device."""
        entry = _Entry(features, device, self._run)
        entry.move(device)
        self._by_latent.setdefault(latent, {})[key] = entry

    def nbytes(self, device: torch.device | None = None) -> int:
        """Bytes used in total, or on one device."""
        return sum(size(entry.features) for _, _, entry in self._entries() if device in (None, entry.device))

    def move(
        self, source: torch.device, target: torch.device, amount: float = float("inf"), unused: bool = False
    ) -> int:
        """Move entries to another device until so many bytes are free on the first. Returns the bytes freed.

        unused: only those that neither this run nor the last one used.
        """
        freed = 0
        for _, _, entry in self._oldest(source, unused) if source != target else ():
            if freed >= amount:
                break
            freed += size(entry.features)
            entry.move(target)
        return freed

    def drop(self, device: torch.device, amount: float) -> int:
        """Drop entries until so many bytes are free on that device. Returns the bytes freed.

        Only those that neither this run nor the last one used: a run visits its noise levels in turn, so dropping the
        level used longest ago would leave the next run nothing.
        """
        freed = 0
        for entries, key, entry in self._oldest(device, unused=True):
            if freed >= amount:
                break
            freed += size(entry.features)
            del entries[key]
        return freed

    def clear(self) -> None:
        self._by_latent.clear()

    def __len__(self) -> int:
        return sum(1 for _ in self._entries())

    def _entries(self) -> Iterator[_Place]:
        for entries in self._by_latent.values():
            for key, entry in entries.items():
                yield entries, key, entry

    def _oldest(self, device: torch.device, unused: bool) -> list[_Place]:
        """The entries on that device, the one used longest ago first."""
        since = self._run - 1 if unused else self._run + 1
        found = [place for place in self._entries() if place[2].device == device and place[2].last_run < since]
        return sorted(found, key=lambda place: place[2].last_run)
