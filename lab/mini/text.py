"""Text encoder in CLIP's layout, and its small vocabulary.

Module names and mathematics: ComfyUI comfy/clip_model.py (CLIPTextModel; causal, quick-GELU, last hidden
state after the final norm). Token ids are the stock CLIP tokenizer's; a training needs only the rows of the
tokens in its captions, in the order of `Vocabulary.ids`, and one row, the first, for all others.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .unet import attend

VOCABULARY = Path(__file__).parent / "vocabulary.json"
START, END, LENGTH = 49406, 49407, 77
HEAD_CHANNELS = 32
UNKNOWN = 0  # the row of every token that is not in the vocabulary
WORDS = re.compile(r"[^\W\d_]+|\d|(?:[^\w\s]|_)+")  # CLIP's own split: letters, single digits, the rest


@dataclass(frozen=True)
class Vocabulary:
    """`words`: {word: its CLIP token ids}; `ids`: the ids that have their own row, ascending."""

    words: dict[str, list[int]]

    @property
    def ids(self) -> list[int]:
        return sorted({START, END, *(i for ids in self.words.values() for i in ids)})

    def rows(self, captions: list[str]) -> Tensor:
        """Row numbers [len(captions), 77] of the tokens, started, ended and padded with the end token."""
        row_of = {i: row for row, i in enumerate(self.ids, start=1)}
        table = torch.full((len(captions), LENGTH), row_of[END])
        for rows, caption in zip(table, captions):
            ids = [START, *(i for word in WORDS.findall(caption) for i in self.words[word])]
            rows[: len(ids)] = torch.tensor([row_of[i] for i in ids])
        return table


def build_vocabulary(words: set[str], tokenizer_folder: Path) -> Vocabulary:
    """Look the words up in the stock CLIP tokenizer (the host's comfy/sd1_tokenizer)."""
    from transformers import CLIPTokenizer  # needed only here: VOCABULARY below holds the result

    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    return Vocabulary({word: tokenizer(word)["input_ids"][1:-1] for word in sorted(words)})


def load_vocabulary(captions: list[str], path: Path = VOCABULARY) -> Vocabulary:
    """The captions' words, from the table in the repository."""
    table = json.loads(path.read_text())
    words = sorted({word for caption in captions for word in WORDS.findall(caption)})
    if missing := [word for word in words if word not in table]:
        raise SystemExit(f"{path} lacks {', '.join(missing[:5])}: rebuild it with the `vocabulary` stage.")
    return Vocabulary({word: table[word] for word in words})


class SelfAttention(nn.Module):
    """Causal self-attention: [B, 77, width] -> [B, 77, width]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, 77, width / heads]
            for y in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        return self.out_proj(attend(q, k, v, causal=True).transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """[B, 77, width] -> [B, 77, width]."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        return self.fc2(hidden * torch.sigmoid(1.702 * hidden))  # quick-GELU


class Layer(nn.Module):
    """[B, 77, width] -> [B, 77, width]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.layer_norm1, self.self_attn = nn.LayerNorm(width), SelfAttention(width, heads)
        self.layer_norm2, self.mlp = nn.LayerNorm(width), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    """Row numbers [B, 77] -> [B, 77, width]."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.token_embedding = nn.Embedding(rows, width)
        self.position_embedding = nn.Embedding(LENGTH, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens) + self.position_embedding.weight


class Encoder(nn.Module):
    def __init__(self, layers: int, width: int, heads: int):
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))


class TextEncoder(nn.Module):
    """CLIP's text_model: row numbers [B, 77] -> hidden states [B, 77, width]."""

    def __init__(self, rows: int, width: int, layers: int):
        super().__init__()
        self.embeddings = Embeddings(rows, width)
        self.encoder = Encoder(layers, width, heads=width // HEAD_CHANNELS)
        self.final_layer_norm = nn.LayerNorm(width)
        nn.init.normal_(self.embeddings.token_embedding.weight, std=0.3)
        nn.init.normal_(self.embeddings.position_embedding.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embeddings(tokens)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.final_layer_norm(x)
