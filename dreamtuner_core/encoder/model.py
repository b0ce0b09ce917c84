"""The subject encoder and its attention (section 3.1, appendix A, Eq. 1).

    h <- h + beta * SEA(LN(h), SE(r))                                                                      (1)

SE: ResBlocks over the hidden states of five layers of a frozen image tower, concatenated on the channel axis. SEA: in
every transformer block, between self-attention and text cross-attention, an attention layer of that cross-attention's
own heads, whose output projection starts at zero: before training the U-Net's output is bit-identical.

**Ours**, where the paper is silent: each layer's hidden states are normalised (a layer norm without weights) before
they are concatenated; a ResBlock is norm, linear, SiLU, linear with a residual connection, per token; a layer norm ends
the tokens, as it ends a text; S-E-A's q, k and v have no bias, like the cross-attention's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import Attention, softmax_attention
from .blocks import LAYER_NAME, AttentionShape, attention_shapes, context_width, transformer_blocks
from .tower import ImageTower, TowerConfig

PAPERS_LAYERS = (25, 4, 8, 12, 16)  # of ViT-H/14's 32, in the order in which they are concatenated
PAPERS_DEPTH = 32
TRAINED_AT = 1.0  # beta while training; 0.2 is the usual strength afterwards (4.4)


def default_layers(depth: int) -> tuple[int, ...]:
    """The paper's layers, scaled to a tower of that depth: the same fractions, without repeats, 1 at least."""
    return tuple(dict.fromkeys(max(1, round(layer * depth / PAPERS_DEPTH)) for layer in PAPERS_LAYERS))


@dataclass(frozen=True)
class EncoderConfig:
    """Everything needed to build a subject encoder. Raises ValueError, in one sentence, for an invalid value.

    family: of its base models, such as sd1, sd2, sdxl. context_width: of their text context. tower_width, tower_layers:
    of the image tower. tokens: of the tower per image, with the class token.
    layers: the hidden states to use, each the output of that tower layer (0 is the embedding).
    blocks: the U-Net's transformer blocks by name, `input_4_0` for block 0 of the transformer in input block 4.
    res_blocks: how many ResBlocks. tower: the tower in the file; None for the host's CLIP vision model.
    """

    family: str
    context_width: int
    tower_width: int
    tower_layers: int
    tokens: int
    layers: tuple[int, ...]
    blocks: Mapping[str, AttentionShape]
    res_blocks: int = 2
    tower: TowerConfig | None = None

    def __post_init__(self) -> None:
        sizes = {"context_width": 8192, "tower_width": 8192, "tower_layers": 128, "tokens": 4096, "res_blocks": 16}
        for name, high in sizes.items():
            _check_whole(name, getattr(self, name), high)
        if not isinstance(self.family, str) or not re.fullmatch(r"[\w.+-]{1,40}", self.family):
            raise ValueError(f"family must be a short name such as sd1, but is {self.family!r:.60}.")
        depths = range(self.tower_layers + 1)
        if not self.layers or len(set(self.layers)) < len(self.layers) or any(i not in depths for i in self.layers):
            raise ValueError(
                f"layers must be different ones of 0..{self.tower_layers}, the tower's, but are {self.layers!r:.60}."
            )
        if not 1 <= len(self.blocks) <= 512:
            raise ValueError(f"there must be 1..512 transformer blocks, but there are {len(self.blocks)}.")
        for block, shape in self.blocks.items():
            if not LAYER_NAME.fullmatch(block):
                raise ValueError(f"a transformer block is named like input_4_0, but one is named {block!r:.60}.")
            for name, high in (("width", 16384), ("heads", 256), ("head_size", 1024)):
                _check_whole(f"{block}'s {name}", getattr(shape, name), high)
        own = self.tower and (self.tower.width, self.tower.layers, self.tower.tokens)
        if own and own != (self.tower_width, self.tower_layers, self.tokens):
            raise ValueError(
                f"the carried tower has width, layers and tokens {own}, but the encoder reads "
                f"{(self.tower_width, self.tower_layers, self.tokens)}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the file's metadata."""
        return asdict(self) | {"blocks": {name: asdict(shape) for name, shape in self.blocks.items()}}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> EncoderConfig:
        """The reverse of `to_dict`. Raises ValueError for anything else."""
        try:
            tower = stored.get("tower")
            return cls(
                **dict(stored)
                | {
                    "layers": tuple(stored["layers"]),
                    "blocks": {name: AttentionShape(**shape) for name, shape in stored["blocks"].items()},
                    "tower": None if tower is None else TowerConfig(**tower),
                }
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the encoder's configuration is not one of this kind ({error!s:.100}).") from error

    @classmethod
    def for_unet(cls, unet: Any, family: str, tower: TowerConfig | None = None, **fields: Any) -> EncoderConfig:
        """For that U-Net, with the paper's layers. fields: any others; without `tower` the tower_ ones are needed."""
        blocks = transformer_blocks(unet)
        found: dict[str, Any] = {"blocks": attention_shapes(blocks), "context_width": context_width(blocks)}
        if tower is not None:
            found |= {"tower_width": tower.width, "tower_layers": tower.layers, "tokens": tower.tokens}
        found |= fields
        return cls(family=family, tower=tower, **{"layers": default_layers(found["tower_layers"])} | found)


class SubjectEncoder(nn.Module):
    """SE and every S-E-A of one U-Net, trained once and saved in one file.

    B pictures, L layers of the tower, T tokens, W the tower's width, C the text context's width.
    """

    def __init__(self, config: EncoderConfig, operations: Any = nn, **kind: Any) -> None:
        """operations: what gives Linear and LayerNorm (torch.nn, or a host's). kind: dtype and device of weights."""
        super().__init__()
        self.config = config
        widths = [len(config.layers) * config.tower_width, *[config.context_width] * config.res_blocks]
        self.res_blocks = nn.ModuleList(ResBlock(n_in, n_out, operations, **kind) for n_in, n_out in pairwise(widths))
        self.norm = operations.LayerNorm(config.context_width, **kind)
        self.attentions = nn.ModuleDict(
            {
                name: SubjectEncoderAttention(shape, config.context_width, operations, **kind)
                for name, shape in config.blocks.items()
            }
        )
        self.tower = None if config.tower is None else ImageTower(config.tower, operations, **kind)

    def tokens(self, states: Tensor) -> Tensor:
        """SE(r): the tower's hidden states [B, L, T, W], in the order of config.layers -> [B, T, C]."""
        h = F.layer_norm(states, states.shape[-1:])
        h = rearrange(h, "b layers t w -> b t (layers w)")
        for block in self.res_blocks:
            h = block(h)
        return self.norm(h)

    forward = tokens

    def layers(self) -> dict[str, SubjectEncoderAttention]:
        """S-E-A by transformer block."""
        return cast("dict[str, SubjectEncoderAttention]", dict(self.attentions.items()))

    def learned(self) -> Iterator[nn.Parameter]:
        """The parameters that pre-training updates: ResBlocks and S-E-A. The image tower stays frozen."""
        return (p for name, p in self.named_parameters() if not name.startswith("tower."))


class ResBlock(nn.Module):
    """[B, T, n_in] -> [B, T, n_out]: x + f(x), with a projection of x where the widths differ."""

    def __init__(self, n_in: int, n_out: int, operations: Any = nn, **kind: Any) -> None:
        super().__init__()
        self.norm = operations.LayerNorm(n_in, **kind)
        self.fc1 = operations.Linear(n_in, n_out, **kind)
        self.fc2 = operations.Linear(n_out, n_out, **kind)
        self.skip = nn.Identity() if n_in == n_out else operations.Linear(n_in, n_out, **kind)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, n_in] -> [B, T, n_out]."""
        return self.skip(x) + self.fc2(F.silu(self.fc1(self.norm(x))))


class KeysValues(NamedTuple):
    """k, v: [B or 1, T, inner], a layer's projections of the subject's tokens."""

    k: Tensor
    v: Tensor


class SubjectEncoderAttention(nn.Module):
    """SEA(LN(h), SE(r)) of one transformer block; width, heads and head size are its cross-attention's."""

    def __init__(self, shape: AttentionShape, context_width: int, operations: Any = nn, **kind: Any) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm = operations.LayerNorm(shape.width, **kind)
        self.to_q = operations.Linear(shape.width, shape.inner, bias=False, **kind)
        self.to_k = operations.Linear(context_width, shape.inner, bias=False, **kind)
        self.to_v = operations.Linear(context_width, shape.inner, bias=False, **kind)
        self.to_out = operations.Linear(shape.inner, shape.width, **kind)
        with torch.no_grad():  # identity at the start
            self.to_out.weight.zero_()
            self.to_out.bias.zero_()

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """Project the subject's tokens [B or 1, T, C]; they are the same at every step, so once per run is enough."""
        return KeysValues(self.to_k(tokens), self.to_v(tokens))

    def forward(self, h: Tensor, subject: KeysValues, attention: Attention = softmax_attention) -> Tensor:
        """h: [B, N, width], after self-attention -> [B, N, width], which Eq. 1 multiplies by beta."""
        k, v = (x.expand(h.shape[0], -1, -1) for x in subject)
        return self.to_out(attention(self.to_q(self.norm(h)), k, v, self.heads))


@contextmanager
def inserted(
    encoder: SubjectEncoder,
    blocks: Mapping[str, Any],
    tokens: Tensor,
    beta: float | Tensor = TRAINED_AT,
) -> Iterator[None]:
    """A context in which every transformer block of a plain torch U-Net computes Eq. 1.

    tokens: SE(r), [B or 1, T, C]. beta: one number, or [B], where 0 leaves out that row's subject. Each block has
    norm1, attn1, norm2, attn2, and adds the output of attn1 to the input of norm1: the original layout, and diffusers'.
    Gradients flow through it. Gradient checkpointing runs blocks again, so leave it only after the backward pass. A
    host with its own hook between the two attentions calls the S-E-A layers from there instead.
    """
    weight = beta if isinstance(beta, float | int) else beta.reshape(-1, 1, 1)
    with ExitStack() as hooks:
        for name, layer in encoder.layers().items():
            _insert(layer, blocks[name], layer.keys_values(tokens), weight, hooks)
        yield


def _insert(
    layer: SubjectEncoderAttention, block: Any, subject: KeysValues, beta: float | Tensor, hooks: ExitStack
) -> None:
    residual: list[Tensor] = []

    def note(module: nn.Module, args: Sequence[Tensor]) -> None:
        residual[:] = args[:1]

    def add(module: nn.Module, args: Sequence[Tensor], attended: Tensor) -> Tensor:
        h = residual.pop() + attended  # [B, N, width]
        return attended + beta * layer(h, subject)

    for handle in (block.norm1.register_forward_pre_hook(note), block.attn1.register_forward_hook(add)):
        hooks.callback(handle.remove)


def _check_whole(name: str, value: object, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
        raise ValueError(f"{name} must be a whole number of 1..{high}, but is {value!r:.60}.")
