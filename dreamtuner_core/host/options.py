"""Keys of transformer_options, which the host and all packs share during a call, and their meaning when absent.

Other packs write these options too, and some call the model with their own options, so any key may be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Options = dict[str, Any]

Patch = Callable[[Tensor, Tensor, Tensor, Options], Tensor]
"""The host's attn1 replacement: (q, k, v, extra_options) -> [B, N, C], all after projection."""

# Keys of a call, read and written. Without patches and replacements, there are none.
PATCHES = "patches"  # kind -> list of functions
REPLACED = "patches_replace"  # kind -> layer -> Patch
SIGMAS = "sigmas"  # the noise level; without it, that of the call itself
UUIDS = "uuids"  # ids of the batch's conditionings; absent: unknown ones
SIDES = "cond_or_uncond"  # their index in the guider's conds, 1 = the negative; absent: one positive conditioning
SAMPLE_SIGMAS = "sample_sigmas"  # the sampler's schedule; absent: each call is a separate step

OVERRIDE = "optimized_attention_override"  # another pack's kernel; absent: the host's

# Keys of a layer, read only.
BLOCK, BLOCK_INDEX = "block", "block_index"  # which layer it is; always there
HEADS = "n_heads"  # always there
PRECISION = "attn_precision"  # absent: the host's own choice
GRID = "activations_shape"  # [..., rows, columns] of the layer's tokens; always there

# Keys of other packs and of the host's nodes, read only.
WIDENED = "cond_or_uncond_couple"  # the sides, if rows were added between two layers (Attention Couple)
EASY_CACHE = "easycache"  # the key of the host's own wrapper that skips steps
PART = "ref_uncond_idxs"  # the rows of the batch in a call for some of them (Advanced-ControlNet)


def values(options: Options, key: str) -> list[Any]:
    """The values of a list in the options; other packs put a tuple or a tensor there, or nothing."""
    found = options.get(key)
    return [] if found is None else found.tolist() if isinstance(found, Tensor) else list(found)


def sides(options: Options) -> list[int]:
    """The side of each conditioning in the batch at present; 1 is negative."""
    return values(options, SIDES) or [0]


def ids(options: Options) -> list[Any]:
    """The ids of the batch's conditionings; None for each if the options have none, or not as many."""
    found, count = values(options, UUIDS), len(sides(options))
    return found if len(found) == count else [None] * count


def precision(options: Options) -> torch.dtype | None:
    return options.get(PRECISION)


def grid(options: Options) -> tuple[int, int] | None:
    """Rows and columns of the layer's tokens, or None. With deep shrink they are not the latent's size over 2^n."""
    shape = options.get(GRID)
    return None if shape is None else (int(shape[-2]), int(shape[-1]))


def replacement(options: Options, kind: str, layer: tuple[str, int, int]) -> Patch | None:
    """Another pack's replacement of that layer's attention, by the layer's key or its block's; None without one."""
    replaced = options.get(REPLACED, {}).get(kind, {})
    return replaced.get(layer, replaced.get(layer[:2]))


def with_patches(options: Options, kind: str, patches: list[Callable[..., Any]]) -> Options:
    """A copy of the options with these patches of one kind."""
    return {**options, PATCHES: {**options.get(PATCHES, {}), kind: patches}}


def with_replacements(options: Options, kind: str, patches: dict[Any, Patch]) -> Options:
    """A copy of the options with these replacements of one kind, instead of others for the same layers."""
    replaced = options.get(REPLACED, {})
    return {**options, REPLACED: {**replaced, kind: {**replaced.get(kind, {}), **patches}}}
