"""The two texts of a tuning, "a <class>" and "a <class> S*", through the host's own tokenizer and text encoder."""

from __future__ import annotations

from typing import Any

import comfy.sd
import torch
from comfy.sd1_clip import SDClipModel
from torch import Tensor

from ...texts import checked_class_word
from ..calls import Text

Tokens = dict[str, list[list[tuple[Any, float]]]]
"""The host's tokens: by tokenizer ("l", "g", "h"), chunks of 77 pairs of a token (id, or an embedding) and a weight."""

CLIP_SCALE = 0.014  # root mean square of CLIP ViT-L/14's token embeddings


class ClassTexts:
    """The texts of the class word, with and without S*.

    words: S*, one embedding [D] per text encoder, by the tokenizer's name; it starts as the mean of the class word's
    token embeddings. scales: the size of these embeddings relative to those of CLIP ViT-L/14, for which the paper's
    learning rate of S* is meant (ours).
    """

    def __init__(self, clip: comfy.sd.CLIP, class_word: str) -> None:
        """Raises ValueError, in one sentence, without a class word, or for the CLIP of an unsupported model."""
        self.clip, network = clip, clip.cond_stage_model
        self.class_word = checked_class_word(class_word)
        self.a_class = f"a {self.class_word}"
        self.tokens: Tokens = tokenize(clip, self.a_class)
        encoders = {name: getattr(network, f"clip_{name}", None) for name in self.tokens}
        if not encoders or not all(isinstance(encoder, SDClipModel) for encoder in encoders.values()):
            raise ValueError(
                "expected the CLIP of an SD1.x, SD2.x or SDXL checkpoint, but this one is a "
                f"{type(network).__name__}; link the CLIP that comes with the model."
            )
        self.encoders: dict[str, SDClipModel] = encoders
        if any(len(chunks) != 1 for chunks in self.tokens.values()):
            raise ValueError("the class word is too long; one or two words are enough, such as 'dog' or 'teddy bear'.")
        rows = {name: self._rows(name) for name in self.tokens}
        self.words = {name: found.mean(0).clone() for name, found in rows.items()}
        self.scales = {name: float(found.square().mean().sqrt()) / CLIP_SCALE for name, found in rows.items()}

    @property
    def width(self) -> int:
        """Width of the encoded text: the sum of the text encoders' widths."""
        return sum(self._table(name).shape[1] for name in self.encoders)

    def _table(self, name: str) -> Tensor:
        return self.encoders[name].transformer.get_input_embeddings().weight

    def _rows(self, name: str) -> Tensor:
        """The embeddings of the class word's tokens, [n, D] on the CPU."""
        ids = tokenize(self.clip, self.class_word)[name][0]
        end = _end(ids, self.encoders[name])
        return self._table(name)[torch.tensor([token for token, _ in ids[1:end]])].float().cpu()

    def with_word(self) -> Tokens:
        """The tokens of "a <class> S*", the same as the host's for "a <class> embedding:<name>"."""
        tokens: Tokens = {}
        for name, ((*chunk,),) in self.tokens.items():
            end = _end(chunk, self.encoders[name])
            tokens[name] = [[*chunk[:end], (self.words[name], 1.0), *chunk[end:]][: len(chunk)]]
        return tokens

    def encode(self, network: Any, tokens: Tokens) -> Text:
        """Encode tokens with the loaded text encoder: cross [1, T, D] and pooled [1, P].

        The backward pass reaches the words and the adapters.
        """
        network.reset_clip_options()
        if self.clip.layer_idx is not None:
            network.set_clip_options({"layer": self.clip.layer_idx})
        return Text(*network.encode_token_weights(tokens)[:2])


def tokenize(clip: comfy.sd.CLIP, text: str) -> Tokens:
    """The text's tokens; parentheses are plain characters, without weights."""
    return clip.tokenize(text, disable_weights=True)


def _end(chunk: list[tuple[Any, float]], encoder: SDClipModel) -> int:
    """The index of the text's end in its chunk."""
    return next(i for i, (token, _) in enumerate(chunk) if token == encoder.special_tokens["end"])
