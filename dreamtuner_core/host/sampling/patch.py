"""Eq. 3 at the host's self-attentions: which kernel computes it, and the patch that reads references."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...attention import LogWeightChannels, ReferenceTokens, log_weight_channels, self_subject_attention
from ..kernels import exact_attention, plain_attention
from ..options import Options, Patch

Chunk = TypeVar("Chunk", bound=Hashable)
"""What the rows of one conditioning read."""

TOKENS_AT_ONCE = 1024  # whose distances to all others are held in memory


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

    def follow(self, reference: ReferenceTokens, part: slice) -> ReferenceTokens:
        """The same reference with its region on the folded tokens of those rows."""
        if self.index is None or reference.region is None:
            return reference
        return replace(reference, region=reference.region[self.index[part]])


def _nearest(tokens: Tensor, among: Tensor) -> Tensor:
    """[N]: which row of `among` [M, C] is nearest to each of the tokens [N, C]; some at a time, for N x M is large."""
    return torch.cat([torch.cdist(some, among).argmin(dim=-1) for some in tokens.split(TOKENS_AT_ONCE)])


def reading_patch(
    patch: Patch | None,
    references: Callable[[Chunk, tuple[int, int]], Sequence[ReferenceTokens]],
    chunks: Sequence[Chunk],
    follower: TokenFollower,
    channels: dict[Hashable, LogWeightChannels],
) -> Patch:
    """Eq. 3 in place of one self-attention.

    patch: the replacement of another pack that stands there, or None.
    references: (chunk, grid) -> what the rows of that chunk read, regions on the layer's own rows and columns of
        tokens (as the host tells them: deep shrink's are no down-sampling of the latent).
    chunks: what each of the batch's conditionings reads, in order; neighbours that are equal share one call.
    channels: log m, kept for all layers and steps that have the same.
    """

    def read(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
        own = None if patch is None else patch(q, k, v, options)
        if k.shape[0] != q.shape[0]:  # HyperTile folds q alone; the host's kernels then fold k and v like this
            k, v = (x.reshape(q.shape[0], -1, x.shape[-1]) for x in (k, v))
        rows, start, parts = q.shape[0] // len(chunks), 0, []
        grid = tuple(options["activations_shape"][-2:])
        for chunk, group in groupby(chunks):
            part = slice(start, start + rows * len(list(group)))
            start = part.stop
            read_here = [follower.follow(r, part) for r in references(chunk, grid)]
            own_here = None if own is None else own[part]
            if not read_here:
                parts.append(plain_attention(q[part], k[part], v[part], options) if own_here is None else own_here)
                continue
            heads = options["n_heads"]
            tokens = q.shape[1:], k.shape[1], *(len(r.weight) for r in read_here)
            key = (chunk, grid, tokens, heads, q.dtype)
            log_m = channels.get(key) if follower.index is None else None
            if log_m is None:
                log_m = log_weight_channels(q[part], k.shape[1], read_here, heads)
            if follower.index is None:
                channels[key] = log_m
            kernel = exact_attention(options)
            parts.append(self_subject_attention(q[part], k[part], v[part], read_here, heads, kernel, own_here, log_m))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return read
