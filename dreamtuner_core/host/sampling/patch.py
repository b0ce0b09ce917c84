"""Eq. 3 at the host's self-attentions, for one call of the model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...attention import ReferenceTokens
from ...bank import Features
from ..kernels import Way, plain_attention, way_of_eq3
from ..options import HEADS, PATCHES, Options, Patch, replacement, with_patches, with_replacements
from ..rows import Batch, Group, Spot
from ..settings import AppliedSubject
from ..unet import Layer
from .regions import Regions

TOKENS_AT_ONCE = 1024  # whose distances to all others are held in memory
LOG_MS_KEPT = 256  # in one run; tiles that move at each step need others each time


class TokenFollower:
    """Tells which tokens of the picture a layer's queries are, where other packs fold or merge them.

    HyperTile cuts queries into tiles and token merging averages some, each in a random way of its own, while a region
    lies on the picture. So the tokens are noted before those patches and recognised after them: a moved token equals
    its original, a merged one is nearest to one that it was made of. Only runs with a region need this.
    """

    def __init__(self) -> None:
        self.original: Tensor | None = None
        self.index: Tensor | None = None

    def around(self, patches: Sequence[Callable[..., Any]]) -> list[Callable[..., Any]]:
        """The attn1 patches with this follower before and after them."""
        return [self._before, *patches, self._after]

    def _before(self, n: Tensor, context: Tensor, value: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
        self.original = n
        return n, context, value

    def _after(self, n: Tensor, context: Tensor, value: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
        original, self.index = self.original, None
        if original is not None and n.shape != original.shape:
            folded = n.reshape(original.shape[0], -1, n.shape[-1])
            nearest = [_nearest(*row) for row in zip(folded.float(), original.float())]  # B of [T N']
            self.index = torch.stack(nearest).reshape(n.shape[:2])
        return n, context, value

    def follow(self, reference: ReferenceTokens, part: slice | Tensor) -> ReferenceTokens:
        """The same reference with its region, [N] or [rows, N], on the folded tokens of those rows."""
        if self.index is None or reference.region is None:
            return reference
        index = self.index[part]
        return replace(reference, region=reference.region.expand(len(index), -1).gather(1, index))


def _nearest(tokens: Tensor, among: Tensor) -> Tensor:
    """[N]: which row of `among` [M, C] is nearest to each of the tokens [N, C]; some at a time, for N x M is large."""
    return torch.cat([torch.cdist(some, among).argmin(dim=-1) for some in tokens.split(TOKENS_AT_ONCE)])


class Read(NamedTuple):
    """One subject as some rows read it. subject: its index. shift: of its noise level, in timesteps. weight: w_ref."""

    subject: int
    shift: float
    weight: float


Reading = tuple[Read, ...]
"""All that the rows of one conditioning read."""


def _sources(reading: Reading) -> Hashable:
    """What is read, by whatever weight: rows that read the same sources do so in one call."""
    return tuple((read.subject, read.shift) for read in reading)


@dataclass(frozen=True)
class Call:
    """One call of the model.

    batch: who is who. wanted, readings: of each conditioning, whether it is wanted and what it reads. features: gives
    them by subject and shift, computed when first asked for. spots: where each row of the batch lies, [] where there
    are no regions.
    """

    sigma: float
    batch: Batch
    wanted: list[bool]
    readings: list[Reading]
    features: Callable[[], dict[tuple[int, float], Features]]
    spots: list[Spot]


class Reader:
    """The self-attentions of one call, reading.

    regions, log_ms, seen (the subjects that were read): of the whole run.
    """

    def __init__(
        self,
        call: Call,
        subjects: Sequence[AppliedSubject],
        regions: Regions,
        log_ms: dict[Hashable, Any],
        seen: set[int],
    ) -> None:
        self.call, self.subjects, self.regions, self.log_ms, self.seen = call, subjects, regions, log_ms, seen
        self.follower = TokenFollower()
        self.weights: dict[Hashable, Tensor] = {}  # layers of one size share a mask

    def joined(self, options: Options, layers: Sequence[Layer]) -> Options:
        """The options in which every layer that reads has Eq. 3, around what stands there."""
        read = {block: self.in_block(block) for block in {layer.block for layer in layers}}
        patches = {
            layer: self.patch(layer, read[layer.block], replacement(options, "attn1", layer))
            for layer in layers
            if any(read[layer.block])
        }
        before = options.get(PATCHES, {}).get("attn1_patch")
        if before and self.call.spots:
            options = with_patches(options, "attn1_patch", self.follower.around(before))
        return with_replacements(options, "attn1", patches)

    def in_block(self, block: str) -> list[Reading]:
        """What each conditioning reads in that part of the U-Net: not the subjects that it leaves out."""
        return [
            tuple(read for read in reading if block in self.subjects[read.subject].blocks)
            for reading in self.call.readings
        ]

    def patch(self, layer: Layer, readings: Sequence[Reading], standing: Patch | None) -> Patch:
        """Eq. 3 in place of one self-attention. standing: another pack's replacement, or None."""

        def read(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
            own = None if standing is None else standing(q, k, v, options)
            if k.shape[0] != q.shape[0]:  # HyperTile folds q alone; the host's kernels then fold k and v like this
                k, v = (x.reshape(q.shape[0], -1, x.shape[-1]) for x in (k, v))

            def attend(group: Group) -> Tensor:
                q_rows, k_rows, v_rows = q[group.part], k[group.part], v[group.part]
                own_rows = None if own is None else own[group.part]
                if not group.whos[0]:
                    return plain_attention(q_rows, k_rows, v_rows, options) if own_rows is None else own_rows
                found = self._references(group, layer, options)
                way = way_of_eq3(q, found, own, options)
                log_m = self._log_m(way, group.whos, found, q_rows, k.shape[1], options)
                return way.attend(q_rows, k_rows, v_rows, found, options[HEADS], own_rows, log_m)

            return self.call.batch.by_who(q, options, readings, attend, _sources)

        return read

    def _references(self, group: Group, layer: Layer, options: Options) -> list[ReferenceTokens]:
        """The tokens that are read at a layer, with their regions for those rows."""
        spots = [self.call.spots[row] for row in group.rows] if self.call.spots else []
        features, found = self.call.features(), []
        for same in zip(*group.whos):  # one subject as each of the rows reads it
            i, shift, _ = same[0]
            k, v, mask = features[i, shift][layer]
            region = self.regions.at(i, spots, options, k.device)
            found.append(self.follower.follow(ReferenceTokens(k, v, self._weight(same, mask), region), group.part))
            self.seen.add(i)
        return found

    def _weight(self, reads: tuple[Read, ...], mask: Tensor) -> Tensor:
        """w_ref * m_r of one subject's tokens: [M], or [rows, M] where rows read it by weights of their own."""
        key = (reads, id(mask))  # the call's features hold the mask
        if key not in self.weights:
            weights = [[read.weight] for read in reads]
            self.weights[key] = mask * (weights[0][0] if len(reads) == 1 else mask.new_tensor(weights))
        return self.weights[key]

    def _log_m(
        self,
        way: Way,
        of_rows: Sequence[Reading],
        references: Sequence[ReferenceTokens],
        q: Tensor,
        keys: int,
        options: Options,
    ) -> Any:
        regions = tuple(id(r.region) for r in references)  # the run keeps them, so that an id stands for one region
        tokens = q.shape[1], keys, *(r.k.shape[1] for r in references)
        key = (way.log_m, of_rows, regions, tokens, options[HEADS], q.dtype)
        if self.follower.index is not None:  # other regions in each layer
            return way.log_m(q, keys, references, options[HEADS])
        if key not in self.log_ms:
            if len(self.log_ms) >= LOG_MS_KEPT:
                self.log_ms.clear()
            self.log_ms[key] = way.log_m(q, keys, references, options[HEADS])
        return self.log_ms[key]
