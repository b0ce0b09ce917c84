"""IP-Adapter (Ye et al., arXiv 2308.06721), read from its public files as one more kind of subject encoder.

    Attention(q, k_text, v_text) + beta * Attention(q, k_ip, v_ip)        in every cross-attention, before to_out (5)

q is the cross-attention's own; k_ip and v_ip are new projections of image tokens. This is not the paper's S-E-A: it is
added beside the text and not before it, and was trained on whole pictures, with their layout.

The public layout (tencent-ailab/IP-Adapter; SD1.5 and SDXL): `image_proj.*`, one of two kinds,
- plain: `proj`, `norm`: the CLIP's projected image embedding becomes 4 tokens;
- plus: `latents`, `proj_in`, `layers.*`, `proj_out`, `norm_out`: a resampler makes 16 tokens of the hidden states
  before the CLIP's last layer;
and `ip_adapter.N.to_k_ip`, `to_v_ip`, N odd: the U-Net's cross-attentions, all of the input side first, then those of
the output side, then the middle. Without the subject, as in classifier-free guidance, the tokens are those of a zero
embedding (plain) or of a picture of zeros (plus).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from ..attention import Attention, softmax_attention
from .model import KeysValues

FAMILIES = {768: "sd1", 1024: "sd2", 2048: "sdxl"}  # by the width of the text context
HEAD_SIZE = 64  # of the resampler, in every public file
PAIR = re.compile(r"ip_adapter\.(\d{1,4})\.to_k_ip\.weight")
RESAMPLER_LAYER = re.compile(r"layers\.(\d{1,2})\.")
LARGEST = 16384  # of any width
PLAIN = {"proj.weight": 2, "norm.weight": 1}  # what tells the kinds apart, and the number of its dimensions
PLUS = {
    "latents": 3,
    "proj_in.weight": 2,
    "proj_out.weight": 2,
    "layers.0.0.to_q.weight": 2,
    "layers.0.1.1.weight": 2,
}


def is_ip_adapter(keys: Collection[str]) -> bool:
    """Whether these are the weight names of an IP-Adapter, of any kind."""
    return bool(keys) and all(key.startswith(("image_proj.", "ip_adapter.")) for key in keys)


@dataclass(frozen=True)
class ResamplerConfig:
    """width: of the latents. layers: their number. inner, hidden: widths of attention and feed-forward."""

    width: int
    layers: int
    inner: int
    hidden: int


@dataclass(frozen=True)
class IPAdapterConfig:
    """context_width: of the text context. embedding_width: of the CLIP output. tokens: per image.

    pairs: inner width of each cross-attention, by N. resampler: of the plus kind; None for the plain one.
    """

    context_width: int
    embedding_width: int
    tokens: int
    pairs: Mapping[int, int]
    resampler: ResamplerConfig | None = None

    @property
    def family(self) -> str:
        return FAMILIES.get(self.context_width, f"a U-Net of context width {self.context_width}")

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> IPAdapterConfig:
        """Recognise the kind by the weights' shapes. Raises ValueError, without the file's name, for unknown kinds."""
        projection = {
            key.removeprefix("image_proj."): shape for key, shape in shapes.items() if key.startswith("image_proj.")
        }
        pairs = {int(found[1]): shape for key, shape in shapes.items() if (found := PAIR.fullmatch(key))}
        kind = PLUS if PLUS.keys() <= projection.keys() else PLAIN
        if not kind.keys() <= projection.keys() or not pairs or any("lora" in key for key in shapes):
            raise ValueError("is an IP-Adapter of another kind (such as FaceID or full-face): expected plain or plus.")
        seen = [(projection[key], rank) for key, rank in kind.items()] + [(shape, 2) for shape in pairs.values()]
        if len(pairs) > 512 or any(len(s) != rank or not all(0 < n <= 16 * LARGEST for n in s) for s, rank in seen):
            raise ValueError("has the names of an IP-Adapter, but its weights have shapes that no such file has.")
        sizes = _plus_sizes(projection) if kind is PLUS else _plain_sizes(projection)
        return cls(**sizes, pairs={n: inner for n, (inner, _) in pairs.items()})


def _plain_sizes(projection: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    (width, embedding_width), (context_width,) = projection["proj.weight"], projection["norm.weight"]
    return {
        "context_width": context_width,
        "embedding_width": embedding_width,
        "tokens": width // context_width,
    }


def _plus_sizes(projection: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    _, tokens, width = projection["latents"]
    layers = (int(found[1]) for key in projection if (found := RESAMPLER_LAYER.match(key)))
    return {
        "context_width": projection["proj_out.weight"][0],
        "embedding_width": projection["proj_in.weight"][1],
        "tokens": tokens,
        "resampler": ResamplerConfig(
            width=width,
            layers=1 + max(layers),
            inner=projection["layers.0.0.to_q.weight"][0],
            hidden=projection["layers.0.1.1.weight"][0],
        ),
    }


class IPAdapter(nn.Module):
    """Image tokens and their keys and values. The weights are named as in the public files."""

    def __init__(self, config: IPAdapterConfig, operations: Any = nn, **kind: Any) -> None:
        """operations: what gives Linear and LayerNorm (torch.nn, or a host's). kind: dtype and device of weights."""
        super().__init__()
        self.config = config
        self.image_proj = (ImageProjection if config.resampler is None else Resampler)(config, operations, **kind)
        self.ip_adapter = nn.ModuleDict(
            {
                str(n): KeyValueProjection(config.context_width, inner, operations, **kind)
                for n, inner in sorted(config.pairs.items())
            }
        )

    def pairs(self) -> dict[int, KeyValueProjection]:
        """The key and value projections by N."""
        return {int(n): cast("KeyValueProjection", pair) for n, pair in self.ip_adapter.items()}

    def tokens(self, seen: Tensor) -> Tensor:
        """Plain: embeddings [B, E]; plus: hidden states [B, T, E] -> [B, tokens, context_width]."""
        return self.image_proj(seen)

    forward = tokens


class ImageProjection(nn.Module):
    """The plain kind: an embedding [B, E] -> [B, tokens, C]."""

    def __init__(self, config: IPAdapterConfig, operations: Any, **kind: Any) -> None:
        super().__init__()
        self.proj = operations.Linear(config.embedding_width, config.tokens * config.context_width, **kind)
        self.norm = operations.LayerNorm(config.context_width, **kind)
        self.shape = (config.tokens, config.context_width)

    def forward(self, embedding: Tensor) -> Tensor:
        """Image embeddings [B, E] -> tokens [B, tokens, C]."""
        tokens, _ = self.shape
        return self.norm(rearrange(self.proj(embedding), "b (tokens c) -> b tokens c", tokens=tokens))


class Resampler(nn.Module):
    """The plus kind: learned latents attend to the hidden states, [B, T, E] -> [B, tokens, C]."""

    def __init__(self, config: IPAdapterConfig, operations: Any, **kind: Any) -> None:
        super().__init__()
        sizes = config.resampler
        assert sizes is not None
        self.latents = nn.Parameter(torch.zeros(1, config.tokens, sizes.width, **kind))
        self.proj_in = operations.Linear(config.embedding_width, sizes.width, **kind)
        self.proj_out = operations.Linear(sizes.width, config.context_width, **kind)
        self.norm_out = operations.LayerNorm(config.context_width, **kind)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    LatentAttention(sizes.width, sizes.inner, operations, **kind),
                    nn.Sequential(
                        operations.LayerNorm(sizes.width, **kind),
                        operations.Linear(sizes.width, sizes.hidden, bias=False, **kind),
                        nn.GELU(),
                        operations.Linear(sizes.hidden, sizes.width, bias=False, **kind),
                    ),
                ]
            )
            for _ in range(sizes.layers)
        )

    def forward(self, states: Tensor) -> Tensor:
        """Hidden states [B, T, E] -> tokens [B, tokens, C]."""
        x = self.proj_in(states)  # [B, T, width]
        latents = self.latents.to(x).expand(x.shape[0], -1, -1)  # [B, tokens, width]
        for layer in self.layers:
            attention, feed_forward = cast("nn.ModuleList", layer)
            latents = latents + attention(x, latents)
            latents = latents + feed_forward(latents)
        return self.norm_out(self.proj_out(latents))


class LatentAttention(nn.Module):
    """Latents [B, M, W] attend to hidden states [B, T, W] and to themselves."""

    def __init__(self, width: int, inner: int, operations: Any, **kind: Any) -> None:
        super().__init__()
        self.norm1 = operations.LayerNorm(width, **kind)
        self.norm2 = operations.LayerNorm(width, **kind)
        self.to_q = operations.Linear(width, inner, bias=False, **kind)
        self.to_kv = operations.Linear(width, 2 * inner, bias=False, **kind)
        self.to_out = operations.Linear(inner, width, bias=False, **kind)
        self.heads = max(1, inner // HEAD_SIZE)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """x: hidden states [B, T, W]. latents: [B, M, W] -> [B, M, W]."""
        latents = self.norm2(latents)
        k, v = self.to_kv(torch.cat([self.norm1(x), latents], dim=1)).chunk(2, dim=-1)  # [B, T + M, inner]
        return self.to_out(softmax_attention(self.to_q(latents), k, v, self.heads))


class KeyValueProjection(nn.Module):
    """k_ip and v_ip of one cross-attention."""

    def __init__(self, context_width: int, inner: int, operations: Any, **kind: Any) -> None:
        super().__init__()
        self.to_k_ip = operations.Linear(context_width, inner, bias=False, **kind)
        self.to_v_ip = operations.Linear(context_width, inner, bias=False, **kind)

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """Image tokens [B, M, C] -> k, v [B, M, inner]."""
        return KeysValues(self.to_k_ip(tokens), self.to_v_ip(tokens))


def beside_text(
    text: Tensor, q: Tensor, image: KeysValues, heads: int, beta: float, attention: Attention = softmax_attention
) -> Tensor:
    """Eq. 5 above -> [B, N, inner]. text: [B, N, inner], the cross-attention's output. q: [B, N, inner]."""
    k, v = (x.expand(q.shape[0], -1, -1) for x in image)
    return text + beta * attention(q, k, v, heads)


def numbered(layers: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """The layers with their N in the public files. layers: tuples whose first value is input, middle or output."""
    order = {"input": 0, "output": 1, "middle": 2}
    for i, layer in enumerate(sorted(layers, key=lambda layer: order[layer[0]])):  # stable: else as they run
        yield 2 * i + 1, layer
