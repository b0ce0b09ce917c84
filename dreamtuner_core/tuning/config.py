"""What a tuning is: every figure of it in one frozen dataclass that refuses what makes no sense."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

METHODS = ("lora", "full")
PRECISIONS = ("auto", "fp32", "bf16")
REGULAR_FROM = ("subject", "class", "both")

RATES = {"lora": 3e-4, "full": 1e-6}
"""Learning rate of U-Net and text encoder: full is the paper's; lora was chosen by eye on the mini base (ours)."""

OUTCOME_UNCHANGED = ("steps", "gradient_checkpointing", "checkpoint_interval")
"""Settings that change how far or how a tuning runs, and not what any of its steps does."""

ADDED = {"encoder_resblocks": False}
"""Settings that came later, at what was done before them: left so, a tuning begun before them goes on."""


@dataclass(frozen=True)
class TuningConfig:
    """Settings of one tuning. Raises ValueError, in one sentence, for a value out of range.

    learning_rate: of U-Net and text encoder; 0 takes the method's own from RATES. word_rate: of S*.
    rank: of the LoRA, whose alpha equals it. regular_pictures: 0 is tuning without a prior.
    regular_from: "subject" makes them resemble it (the paper); "class" draws the bare class (plain DreamBooth); "both"
    is half and half, those that resemble it told what drew them, its caption (ours).
    prior_weight: of the regular pictures' loss. masked_loss: count the reference's error on the subject alone.
    min_snr: gamma of min-SNR weighting; 0 is none. accumulation: pairs to one step.
    encoder_resblocks: whether the ResBlocks of the model's subject encoder learn too.
    """

    steps: int = 400
    seed: int = 0
    method: str = "lora"
    rank: int = 16
    learning_rate: float = 0.0
    word_rate: float = 5e-3
    regular_pictures: int = 32
    regular_from: str = "subject"
    prior_weight: float = 1.0
    text_encoder: bool = True
    masked_loss: bool = False
    min_snr: float = 0.0
    precision: str = "auto"
    gradient_checkpointing: bool = True
    accumulation: int = 1
    checkpoint_interval: int = 100
    encoder_resblocks: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("steps", 1, 100_000),
            ("seed", 0, 2**64 - 1),
            ("rank", 1, 256),
            ("learning_rate", 0.0, 1.0),
            ("word_rate", 0.0, 1.0),
            ("regular_pictures", 0, 1024),
            ("prior_weight", 0.0, 100.0),
            ("min_snr", 0.0, 1000.0),
            ("accumulation", 1, 64),
            ("checkpoint_interval", 1, 100_000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:  # NaN too
                raise ValueError(f"{name} must be between {low:g} and {high:g}, but is {value:g}.")
        for name, known in (("method", METHODS), ("precision", PRECISIONS), ("regular_from", REGULAR_FROM)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, but is {getattr(self, name)!r}.")

    @property
    def rate(self) -> float:
        """Learning rate of U-Net and text encoder."""
        return self.learning_rate or RATES[self.method]

    @property
    def shares(self) -> tuple[int, int]:
        """Of the regular pictures: how many resemble the subject, and how many are of the bare class."""
        of_class = {"subject": 0, "class": self.regular_pictures, "both": self.regular_pictures // 2}[self.regular_from]
        return self.regular_pictures - of_class, of_class

    @property
    def encoder_rate(self) -> float:
        """Learning rate of the encoder's ResBlocks. They are whole weights whatever the method, so theirs is the full
        method's (the paper's 1e-6), and rises and falls with a learning_rate that is given (ours).
        """
        return self.rate * (RATES["full"] / RATES[self.method])

    def outcome(self) -> dict[str, Any]:
        """The settings that each step's outcome depends on; two tunings that agree here take the same steps."""
        settings = asdict(self) | {"learning_rate": self.rate}
        as_before = {name for name, before in ADDED.items() if settings[name] == before}
        return {name: value for name, value in settings.items() if name not in {*OUTCOME_UNCHANGED, *as_before}}


def warm_up(step: int, steps: int = 10) -> float:
    """The schedule, a factor on every learning rate: it rises over the first steps and then stays.

    It knows nothing of the tuning's length, so a longer tuning begins with the very steps of a shorter one.
    """
    return min(1.0, (step + 1) / steps)


def milestones(steps: int, shares: Sequence[float] = (0, 0.25, 0.5, 0.75, 1)) -> list[int]:
    """Steps after which sample pictures are drawn: those shares of the tuning, each once, rising."""
    return sorted({math.floor(steps * share + 0.5) for share in shares})
