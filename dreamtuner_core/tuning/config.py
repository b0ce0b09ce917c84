"""The settings of a tuning: one frozen dataclass that checks its values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..ranges import check_settings, setting

METHODS = ("lora", "full")
PRECISIONS = ("auto", "fp32", "bf16")
REGULAR_FROM = ("subject", "class", "both")

RATES = {"lora": 3e-4, "full": 1e-6}
"""Learning rate of U-Net and text encoder: full is the paper's; lora was chosen by eye on the mini base (ours)."""

OUTCOME_UNCHANGED = ("steps", "gradient_checkpointing", "checkpoint_interval")
"""Settings that change how far or how a tuning runs, and not what any of its steps does."""


@dataclass(frozen=True)
class TuningConfig:
    """Settings of one tuning. Raises ValueError, in one sentence, for a value out of range.

    learning_rate: of U-Net and text encoder; 0 takes the method's own from RATES. rank: of the LoRA; alpha equals it.
    regular_pictures: 0 is tuning without a prior. regular_from: "subject" makes them resemble it (the paper); "class"
    draws the plain class (plain DreamBooth); "both" is half and half, and those that resemble it are trained with the
    caption that drew them (ours). min_snr: gamma of min-SNR weighting; 0 is none. accumulation: pairs per step.
    encoder_resblocks: whether the ResBlocks of the model's subject encoder are trained too. prior_weight: of the
    regular pictures' loss.
    """

    steps: int = setting(
        400,
        "How long it trains. 300 is often enough, 800 for most subjects. With more steps later, it goes on from here.",
        low=1,
        high=100_000,
    )
    seed: int = setting(0, "The seed of all random numbers of the tuning.", low=0, high=2**64 - 1)
    method: str = setting(
        "lora",
        "lora: small and fast. full: all layers, as in the paper; needs far more memory and disk.",
        options=METHODS,
    )
    rank: int = setting(16, "Size of the LoRA.", low=1, high=256)
    learning_rate: float = setting(
        0.0, "Of the model and the text encoder. 0 takes the method's own.", low=0.0, high=1.0, step=1e-7
    )
    word_rate: float = setting(5e-3, "Learning rate of the new word.", low=0.0, high=1.0, step=1e-5)
    regular_pictures: int = setting(
        32,
        "Pictures that resemble the subject, drawn before the training, so that the model does not forget the class. "
        "Cached on disk for the next tuning.",
        low=0,
        high=1024,
    )
    text_encoder: bool = setting(True, "Train the text encoder too.")
    masked_loss: bool = setting(False, "Learn from the subject alone, not from the white around it.")
    min_snr: float = setting(0.0, "Gamma of min-SNR weighting; 5 is usual, 0 is none.", low=0.0, high=1000.0, step=0.5)
    precision: str = setting(
        "auto",
        "The type that the model computes in. auto: bf16 if the GPU supports it, but fp32 for full. What is trained is "
        "fp32.",
        options=PRECISIONS,
    )
    gradient_checkpointing: bool = setting(
        True, "Needs much less memory, and about a third more time. The result is the same."
    )
    accumulation: int = setting(1, "Pairs of pictures per step.", low=1, high=64)
    checkpoint_interval: int = setting(
        100, "Steps between two checkpoints, from which an interrupted tuning goes on.", low=1, high=100_000
    )
    regular_from: str = setting(
        "subject",
        "What the regular pictures show. subject: pictures that resemble it, as in the paper. class: the plain class, "
        "as the model draws it. both: half of each, which changes the plain class less.",
        options=REGULAR_FROM,
    )
    encoder_resblocks: bool = setting(
        False,
        "Train the model's subject encoder too. The model must come from Apply Subject Encoder with this subject. It "
        "is saved as a subject encoder with the same name.",
    )
    prior_weight: float = setting(1.0, low=0.0, high=100.0)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def rate(self) -> float:
        """Learning rate of U-Net and text encoder."""
        return self.learning_rate or RATES[self.method]

    @property
    def shares(self) -> tuple[int, int]:
        """How many regular pictures resemble the subject, and how many show the plain class."""
        of_class = {"subject": 0, "class": self.regular_pictures, "both": self.regular_pictures // 2}[self.regular_from]
        return self.regular_pictures - of_class, of_class

    @property
    def encoder_rate(self) -> float:
        """Learning rate of the encoder's ResBlocks, whose full weights are trained in both methods.

        So it is that of the full method (the paper's 1e-6), in proportion to learning_rate if that is set (ours).
        """
        return self.rate * (RATES["full"] / RATES[self.method])

    def outcome(self) -> dict[str, Any]:
        """The settings that the result of a step depends on; two tunings with the same ones take the same steps."""
        settings = asdict(self) | {"learning_rate": self.rate}
        return {name: value for name, value in settings.items() if name not in OUTCOME_UNCHANGED}


def warm_up(step: int, steps: int = 10) -> float:
    """The schedule, a factor in 0..1 on every learning rate: it rises over the first steps and is then constant.

    It does not depend on the tuning's length, so a longer tuning begins with the same steps as a shorter one.
    """
    return min(1.0, (step + 1) / steps)


def milestones(steps: int, shares: Sequence[float] = (0, 0.25, 0.5, 0.75, 1)) -> list[int]:
    """Steps after which samples are made: these shares of the tuning, without repeats, rising."""
    return sorted({math.floor(steps * share + 0.5) for share in shares})
