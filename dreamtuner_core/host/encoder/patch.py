"""Eq. 1 (and an IP-Adapter's formula) in the host's transformer blocks: joined to what stands there, for one call.

Which rows read the subject. **Ours**: the wanted side of a guidance does, the unwanted side does not, in Eq. 5 as in
Eq. 4, whose unwanted side has no reference at all: classifier-free guidance, for which the subject is left out of a
share of the training. So the sampler's CFG moves toward the subject as it moves toward the text. An IP-Adapter's
unwanted side reads what stands for no picture, as it was trained.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ...attention import Attention
from ...encoder.blocks import layer_name
from ...encoder.ip_adapter import beside_text, numbered
from ...encoder.model import KeysValues, SubjectEncoder
from ..kernels import plain_attention
from ..options import Options, Patch
from ..settings import AppliedEncoder
from ..unet import Layer

UNWANTED = {"negative", "empty_negative_prompt"}  # sides, as the host's guiders name them


def on_wanted_side(conds: Mapping[str, Sequence[dict[str, Any]]], cond_id: uuid.UUID | None, side: int) -> bool:
    """Whether that conditioning is wanted. conds: a guider's, by side. side: its place in the host's own batch.

    One that the guider does not know is another node's, asked to be moved away from: unwanted.
    """
    names = {name for name, of_side in conds.items() if any(c["uuid"] == cond_id for c in of_side)}
    if cond_id is None or (names & UNWANTED and names - UNWANTED):  # the host copies regional ones, id and all
        return side == 0
    return bool(names - UNWANTED)


class EncoderAtWork:
    """One applied encoder in one run: its layers, and their keys and values, projected once."""

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
        self._kept: dict[tuple[Layer, bool, torch.dtype], KeysValues] = {}

    def reads(self, wanted: bool) -> bool:
        """Whether rows of that side have anything to read."""
        return wanted or self.encoding.without is not None

    def keys_values(self, layer: Layer, wanted: bool, like: Tensor) -> KeysValues:
        """Of the subject, or of no subject, for a layer whose hidden states are like these."""
        key = (layer, wanted, like.dtype)
        if key not in self._kept:
            tokens = self.encoding.tokens if wanted else self.encoding.without
            assert tokens is not None
            self._kept[key] = self.layers[layer].keys_values(tokens.to(like.device, like.dtype))
        return self._kept[key]


def with_encoders(
    options: Options, encoders: Sequence[EncoderAtWork], wanted: Sequence[bool], layers: Sequence[Layer]
) -> Options:
    """A call's transformer_options, joined by these encoders. wanted: of each chunk of the batch, in order."""
    before = [e for e in encoders if e.before_text and any(map(e.reads, wanted))]
    beside = [e for e in encoders if not e.before_text and any(map(e.reads, wanted))]
    if before:
        patches = options.get("patches", {})
        ours = middle_patch(before, wanted)  # first, whatever the order of the nodes
        options = {**options, "patches": {**patches, "middle_patch": [ours, *patches.get("middle_patch", ())]}}
    if beside:
        replaced = options.get("patches_replace", {})
        attn2 = replaced.get("attn2", {})
        ours2 = {
            layer: cross_attention_patch(attn2.get(layer, attn2.get(layer[:2])), beside, wanted) for layer in layers
        }
        options = {**options, "patches_replace": {**replaced, "attn2": {**attn2, **ours2}}}
    return options


def middle_patch(encoders: Sequence[EncoderAtWork], wanted: Sequence[bool]) -> Callable[[Tensor, Options], Tensor]:
    """Eq. 1 between the two attentions; several encoders look at the same h."""

    def add(h: Tensor, options: Options) -> Tensor:
        layer, attention = _layer(options), _attention(options)

        def read(part: slice, side: bool) -> Tensor:
            rows = out = h[part]
            for e in encoders:
                if e.reads(side):
                    subject = e.keys_values(layer, side, rows)
                    out = out + e.strength * e.layers[layer](rows, subject, attention)
            return out

        return _by_side(h, wanted, read)

    return add


def cross_attention_patch(patch: Patch | None, encoders: Sequence[EncoderAtWork], wanted: Sequence[bool]) -> Patch:
    """An IP-Adapter's formula in place of one cross-attention. patch: another pack's that stands there, or None."""

    def attend(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
        text = (patch or plain_attention)(q, k, v, options)
        layer, attention = _layer(options), _attention(options)

        def read(part: slice, side: bool) -> Tensor:
            out = text[part]
            for e in encoders:
                if e.reads(side):
                    image = e.keys_values(layer, side, q)
                    out = beside_text(out, q[part], image, options["n_heads"], e.strength, attention)
            return out

        return _by_side(text, wanted, read)

    return attend


def _by_side(x: Tensor, wanted: Sequence[bool], read: Callable[[slice, bool], Tensor]) -> Tensor:
    """The rows of x, each part of them that is on one side read together."""
    rows, start, parts = x.shape[0] // len(wanted), 0, []
    for side, group in groupby(wanted):
        part = slice(start, start + rows * len(list(group)))
        start = part.stop
        parts.append(read(part, side))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _layer(options: Options) -> Layer:
    block, number = options["block"]
    return Layer(block, number, options["block_index"])


def _attention(options: Options) -> Attention:
    """The host's own kernel."""
    return lambda q, k, v, heads: plain_attention(q, k, v, {**options, "n_heads": heads})
