"""How a tuning may end, and what is left of it: for all tests of tunings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dreamtuner_pack.dreamtuner_core.tuning.loop import Tuning
from graph import sample
from safetensors.torch import load_file


class Stop(Exception):
    """Ends a tuning from inside, as a killed process does: nothing of the pack catches it by name."""


def stop_at(patch: pytest.MonkeyPatch, step: int, error: type[BaseException] = Stop) -> None:
    """Raise when so many steps are taken."""
    advance = Tuning.advance

    def until(self: Tuning) -> float:
        if self.step == step:
            raise error
        return advance(self)

    patch.setattr(Tuning, "advance", until)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in load_file(path).items()}


def same(one: Path, other: Path) -> bool:
    """Whether two files hold the same tensors, bit for bit."""
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def picture(model: Any, clip: Any, prompt: str) -> torch.Tensor:
    encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
    return sample(model, encode(prompt), encode(""))
