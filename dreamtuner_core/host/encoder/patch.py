"""Eq. 1 (and an IP-Adapter's formula) in the host's transformer blocks, added to other patches, for one call.

Which rows read the subject. **Ours**: the positive side of guidance does, the negative side does not, in Eq. 5 as in
Eq. 4, whose negative side has no reference at all. This is classifier-free guidance, and pre-training drops the subject
from a share of its rows for it. So the sampler's CFG moves toward the subject as it moves toward the text. An
IP-Adapter's negative side reads its tokens for "no image", as in its training.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...attention import Attention
from ...encoder.blocks import layer_name
from ...encoder.ip_adapter import beside_text, numbered
from ...encoder.model import KeysValues, SubjectEncoder
from ..kernels import plain_attention
from ..options import (
    BLOCK,
    BLOCK_INDEX,
    HEADS,
    PATCHES,
    Options,
    Patch,
    replacement,
    with_patches,
    with_replacements,
)
from ..rows import Batch, Group, Row
from ..settings import AppliedEncoder
from ..unet import Layer

UNWANTED = {"negative", "empty_negative_prompt"}  # sides, as the host's guiders name them
DUAL = "middle"  # only in the guider DualCFG, which asks for negative, middle, positive; all others for positive first


def on_wanted_side(conds: Mapping[str, Sequence[dict[str, Any]]], cond_id: uuid.UUID | None, side: int) -> bool:
    """Whether that conditioning is on the positive side. conds: the guider's, by side. side: its index in the batch.

    A conditioning that the guider does not know comes from another node, which steers away from it: negative.
    """
    names = {name for name, of_side in conds.items() if any(c["uuid"] == cond_id for c in of_side)}
    if cond_id is None or (names & UNWANTED and names - UNWANTED):  # the host copies regional ones, id and all
        return side > 0 if DUAL in conds else side == 0
    return bool(names - UNWANTED)


class EncoderAtWork:
    """One applied encoder during one run: its layers, and their keys and values, projected once."""

    def __init__(self, applied: AppliedEncoder, layers: Sequence[Layer]) -> None:
        self.encoding, self.strength = applied.encoding, applied.strength
        model = self.encoding.encoder.model
        self.before_text = isinstance(model, SubjectEncoder)
        self.layers: dict[Layer, Any]
        if isinstance(model, SubjectEncoder):
            by_name = model.layers()
            self.layers = {layer: by_name[layer_name(*layer)] for layer in layers}
        else:
            pairs = model.pairs()
            self.layers = {layer: pairs[n] for n, layer in numbered(layers)}
        self.was_read = False
        self._kept: dict[tuple[Layer, bool, torch.dtype], KeysValues] = {}

    def reads(self, wanted: bool) -> bool:
        """Whether rows of that side read any tokens."""
        return wanted or self.encoding.without is not None

    def keys_values(self, layer: Layer, wanted: bool, like: Tensor) -> KeysValues:
        """Keys and values [1, T, C] of the subject, or of "no image", with the device and type of `like`."""
        self.was_read = True
        key = (layer, wanted, like.dtype)
        if key not in self._kept:
            tokens = self.encoding.tokens if wanted else self.encoding.without
            assert tokens is not None
            self._kept[key] = self.layers[layer].keys_values(tokens.to(like.device, like.dtype))
        return self._kept[key]


def with_encoders(
    options: Options,
    encoders: Sequence[EncoderAtWork],
    wanted: Sequence[bool],
    layers: Sequence[Layer],
    batch: Batch | None = None,
) -> Options:
    """A copy of a call's transformer_options with these encoders added.

    wanted: for each conditioning of the batch, whether it is on the positive side. batch: which row is which; None: one
    row per conditioning.
    """
    batch = batch or Batch([Row(i, 0) for i in range(len(wanted))], [0] * len(wanted))
    before = [e for e in encoders if e.before_text and any(map(e.reads, wanted))]
    beside = [e for e in encoders if not e.before_text and any(map(e.reads, wanted))]
    if before:
        others = options.get(PATCHES, {}).get("middle_patch", ())  # ours is first, whatever the order of the nodes
        options = with_patches(options, "middle_patch", [middle_patch(before, wanted, batch), *others])
    if beside:
        standing = {layer: replacement(options, "attn2", layer) for layer in layers}
        ours = {layer: cross_attention_patch(patch, beside, wanted, batch) for layer, patch in standing.items()}
        options = with_replacements(options, "attn2", ours)
    return options


def middle_patch(
    encoders: Sequence[EncoderAtWork], wanted: Sequence[bool], batch: Batch
) -> Callable[[Tensor, Options], Tensor]:
    """Eq. 1 between the two attentions; several encoders read the same h. h: [B, N, width] -> [B, N, width]."""

    def add(h: Tensor, options: Options) -> Tensor:
        layer, attention = _layer(options), _attention(options)

        def read(group: Group) -> Tensor:
            (side,), rows = group.whos, h[group.part]
            out = rows
            for e in encoders:
                if e.reads(side):
                    subject = e.keys_values(layer, side, rows)
                    out = out + e.strength * e.layers[layer](rows, subject, attention)
            return out

        return batch.by_who(h, options, wanted, read)

    return add


def cross_attention_patch(
    standing: Patch | None, encoders: Sequence[EncoderAtWork], wanted: Sequence[bool], batch: Batch
) -> Patch:
    """Replace one cross-attention by an IP-Adapter's formula. standing: another pack's replacement, or None."""

    def attend(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
        text = (standing or plain_attention)(q, k, v, options)
        layer, attention = _layer(options), _attention(options)

        def read(group: Group) -> Tensor:
            (side,), out = group.whos, text[group.part]
            for e in encoders:
                if e.reads(side):
                    image = e.keys_values(layer, side, q)
                    out = beside_text(out, q[group.part], image, options[HEADS], e.strength, attention)
            return out

        return batch.by_who(q, options, wanted, read)

    return attend


def _layer(options: Options) -> Layer:
    block, number = options[BLOCK]
    return Layer(block, number, options[BLOCK_INDEX])


def _attention(options: Options) -> Attention:
    """The host's own attention function."""
    return lambda q, k, v, heads: plain_attention(q, k, v, {**options, HEADS: heads})
