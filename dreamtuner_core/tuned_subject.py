"""A subject with the result of its tuning: the type of the socket DREAMTUNER_TUNED_SUBJECT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .subject import Subject


@dataclass(frozen=True, eq=False)
class TunedSubject:
    """words: S*, one embedding [D] for each text encoder, by the host's name of it ("l", "g", "h").

    name: of the LoRA and the embedding; lora_hash: SHA-256 of the LoRA's file; steps: how many were taken.
    """

    subject: Subject
    class_word: str
    name: str
    lora_hash: str
    steps: int
    words: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def phrase(self) -> str:
        """The words for this subject in a prompt."""
        return f"{self.class_word} embedding:{self.name}"
