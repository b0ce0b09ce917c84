"""Mentions of an embedding in prompts: found exactly where the host's own tokenizer does not load it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dreamtuner_pack.dreamtuner_core.host.mentions import misread_mentions
from safetensors.torch import save_file
from tuning_world import tiny_tokenizer

READ = (
    "a dog embedding:rex on grass",
    "embedding:rex",
    "a dog embedding:rex, on grass",
    "a dog\nembedding:rex",
    "a (dog embedding:rex:1.2) on grass",
    "(embedding:rex:1.2)",
    "(embedding:rex:1.2 )",
    "(embedding:rex: 1e-1), ((embedding:rex))",
    "(a dog, embedding:rex:-1)",
    "embedding:rex.safetensors",
    "embedding: rex",
    "embedding:./rex",
    "embedding:rex\twhich sits",
    "embedding:rexy, embedding:rex-like, embedding:rex.v2 and embedding:rex_2 are others: embedding:rex",
)
MISREAD = (
    "a dog embedding:rex.",
    "a dog embedding:Rex on grass",
    "a dog,embedding:rex on grass",
    "a dog embedding:rex,sitting",
    "a dog Embedding:rex",
    'a dog "embedding:rex"',
    "embedding:cat,embedding:rex",
    "a dog embedding:rex:1.2 without brackets",
    "embedding:rex!",
    "(embedding:rex",
    "a (dog embedding:rex\\) on grass",
    "\\(embedding:rex\\)",
    "[embedding:rex]",
    "<embedding:rex:1.2>",
    "{embedding:rex|a cat}",
    "embedding:rex's ball",
    "the ball of embedding:rex\u2026",
    "\u72acembedding:rex\u3002",
    "embedding\uff1arex",
    "embedding :rex",
    "embeddings:rex",
    "embedding:REX.SAFETENSORS",
    "dog\tembedding:rex",
    "(" * 3000 + "embedding:rex" + ")" * 3000,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("embeddings")
    save_file({"emb_params": torch.ones(1, 48)}, folder / "rex.safetensors")
    return tiny_tokenizer("sd1", [str(folder)])  # type: ignore[arg-type]


def loads(tokenizer: Any, prompt: str) -> bool:
    """Whether the host loads an embedding for this prompt."""
    chunks = tokenizer.tokenize_with_weights(prompt)["l"]
    return any(isinstance(token, torch.Tensor) for chunk in chunks for token, *_ in chunk)


@pytest.mark.parametrize("prompt", READ)
def test_what_the_host_reads_is_not_complained_of(prompt: str, tokenizer: Any) -> None:
    assert loads(tokenizer, prompt)
    assert list(misread_mentions("rex", ["no mention of rex", prompt])) == []


@pytest.mark.parametrize("prompt", MISREAD, ids=lambda prompt: prompt[:30])
def test_what_the_host_ignores_is_found(prompt: str, tokenizer: Any) -> None:
    if len(prompt) < 1000:  # the host itself cannot read thousands of parentheses
        assert not loads(tokenizer, prompt)
    (mention,) = misread_mentions("rex", ["nothing", prompt])
    assert "rex" in mention.lower()


def test_long_prompts_are_searched_at_once() -> None:
    prompts = ["embedding:rex" + "x" * 10**6, "embedding:" * 10**5 + "rex", "dog " * 3 * 10**5 + "embedding:rex."]
    assert [len(mention) <= 80 for mention in misread_mentions("rex", prompts)] == [True] * 2
