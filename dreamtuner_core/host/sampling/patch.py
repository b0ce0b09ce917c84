"""Eq. 3 at the host's self-attentions: which kernel computes it, and the patch that reads references."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...attention import LogWeightChannels, ReferenceTokens, log_weight_channels, self_subject_attention
from ..kernels import exact_attention, plain_attention
from ..options import HEADS, Options, Patch
from ..rows import Batch
from ..unet import Layer

TOKENS_AT_ONCE = 1024  # whose distances to all others are held in memory
KEPT_CHANNELS = 256  # of log m, in one run; tiles that move at each step need others each time


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


@dataclass(frozen=True)
class Reader:
    """What the self-attentions read in one call of the U-Net.

    batch: who is who. chunks: for a layer, what each of the call's conditionings reads there; () is nothing.
    references: (what is read, layer, rows of the batch, options) -> its tokens, with their regions for those rows.
    channels: log m, kept for all layers and steps that have the same.
    """

    batch: Batch
    chunks: Callable[[Layer], Sequence[Hashable]]
    references: Callable[[Any, Layer, list[int], Options], Sequence[ReferenceTokens]]
    channels: dict[Hashable, LogWeightChannels]
    follower: TokenFollower

    def patch(self, layer: Layer, standing: Patch | None) -> Patch:
        """Eq. 3 in place of that layer's self-attention. standing: another pack's replacement, or None."""
        chunks = self.chunks(layer)

        def read(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
            own = None if standing is None else standing(q, k, v, options)
            if k.shape[0] != q.shape[0]:  # HyperTile folds q alone; the host's kernels then fold k and v like this
                k, v = (x.reshape(q.shape[0], -1, x.shape[-1]) for x in (k, v))

            def attend(reading: Hashable, part: slice | Tensor, rows: list[int]) -> Tensor:
                references = self.references(reading, layer, rows, options)
                own_part = None if own is None else own[part]
                if not references:
                    return plain_attention(q[part], k[part], v[part], options) if own_part is None else own_part
                references = [self.follower.follow(r, part) for r in references]
                channels = self._log_m(reading, references, q[part], k.shape[1], options)
                kernel = exact_attention(options)
                heads = options[HEADS]
                return self_subject_attention(q[part], k[part], v[part], references, heads, kernel, own_part, channels)

            return self.batch.by_who(q, options, chunks, attend)

        return read

    def _log_m(
        self, reading: Hashable, references: Sequence[ReferenceTokens], q: Tensor, keys: int, options: Options
    ) -> LogWeightChannels:
        regions = tuple(id(r.region) for r in references)  # the run keeps them, so that an id stands for one region
        tokens = q.shape[1], keys, *(len(r.weight) for r in references)
        key = (reading, regions, tokens, options[HEADS], q.dtype)
        if self.follower.index is not None:  # other regions in each layer
            return log_weight_channels(q, keys, references, options[HEADS])
        if key not in self.channels:
            if len(self.channels) >= KEPT_CHANNELS:
                self.channels.clear()
            self.channels[key] = log_weight_channels(q, keys, references, options[HEADS])
        return self.channels[key]
