"""The training loop: an object that takes one step at a time, and can be saved and resumed.

All random numbers depend on (seed, step), and the optimiser's state is part of the saved state, so a resumed tuning
takes exactly the same steps as one without a break.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from ..optimizer import LARGEST_GRADIENT, OPTIMIZER, is_optimizer_state, load_optimizer_state, optimizer_state
from .config import TuningConfig, warm_up
from .losses import min_snr, pair_loss, row_losses, target
from .pairs import Draw, Pairs

Predict = Callable[[Tensor, Tensor, Draw], Tensor]
"""(noisy [B, C, h, w], sigma [B], draw) -> the network's output [B, C, h, w].

Row 0 has the text "a <class> S*", row 1, if there is one, that of the regular picture.
"""


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate, by name."""

    parameters: Mapping[str, Parameter]
    rate: float


class Tuning:
    """A tuning in progress.

    groups: the trained parameters. levels: the model's noise levels sigma [T], rising. parametrisation: "eps" or "v".
    """

    def __init__(
        self,
        config: TuningConfig,
        groups: list[Group],
        pairs: Pairs,
        levels: Tensor,
        parametrisation: str,
        predict: Predict,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.pairs, self.levels, self.predict = config, pairs, levels, predict
        self.parametrisation, self.device = parametrisation, torch.device(device)
        self.parameters = {name: p for group in groups for name, p in group.parameters.items()}
        self.rates = [group.rate for group in groups]
        self.optimizer = torch.optim.AdamW(
            [{"params": list(group.parameters.values()), "lr": group.rate} for group in groups], weight_decay=0.0
        )
        self.losses: list[float] = []
        self.whole = True  # whether the state is that after `step` steps, and not on the way to the next

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.losses)

    def advance(self) -> float:
        """Take one step and return its loss. An exception leaves the parameters unchanged if `whole` is True then.

        Raises ValueError, in one sentence, for a loss or gradient that is not finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * warm_up(self.step)
        total = 0.0
        for part in range(self.config.accumulation):
            loss = self.loss(part)
            (loss / self.config.accumulation).backward()
            total += float(loss.detach()) / self.config.accumulation
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), LARGEST_GRADIENT)
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise ValueError(
                f"the loss or its gradient is not finite (step {self.step + 1}); lower the learning rates, or set "
                "precision to fp32."
            )
        self.whole = False
        self.optimizer.step()
        self.losses.append(total)
        self.whole = True
        return total

    def loss(self, part: int) -> Tensor:
        """The loss of one pair of this step, a scalar with its autograd graph."""
        draw = self.pairs.draw(self.config.seed, self.step, part, len(self.levels))
        latent = self.pairs.latents(draw)  # [B, C, h, w]
        noise, sigma = draw.noise[: len(latent)], self.levels[draw.level[: len(latent)]]
        latent, noise, sigma = (x.to(self.device) for x in (latent, noise, sigma))
        predicted = self.predict(latent + sigma[:, None, None, None] * noise, sigma, draw)
        counted = self.pairs.counted(draw) if self.config.masked_loss else None
        losses = row_losses(
            predicted,
            target(self.parametrisation, latent, noise, sigma),
            None if counted is None else counted.to(self.device),
        )
        return pair_loss(losses, min_snr(self.parametrisation, sigma, self.config.min_snr), self.config.prior_weight)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name, copied to the CPU."""
        state = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        return state | optimizer_state(self.optimizer, self.parameters)

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Resume from a state. Raises ValueError, without changes, for a state of another tuning."""
        if not self._is_own(state):
            raise ValueError("the saved state is damaged, or has other parameters than this tuning; take another name.")
        load_optimizer_state(self.optimizer, self.parameters, state)
        self.losses = state["losses"].tolist()

    def _is_own(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the state is complete, matches these parameters in names, shapes and types, and is all numbers."""
        others = {name: x for name, x in state.items() if not name.startswith(OPTIMIZER)}
        losses = others.get("losses")
        return (
            losses is not None
            and len(others) == 1
            and losses.ndim == 1
            and losses.dtype == torch.float64
            and bool(torch.isfinite(losses).all())
            and is_optimizer_state(state, self.parameters, stepped=bool(losses.numel()))
        )
