"""The training loop: an object that takes one step at a time, and can be saved and resumed.

All random numbers depend on (seed, step, row), so a resumed run takes the same steps as one without a break: to the bit
with the same number of processes, else up to the order in which floats are added.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..encoder.model import SubjectEncoder
from ..optimizer import LARGEST_GRADIENT, OPTIMIZER, is_optimizer_state, load_optimizer_state, optimizer_state
from .config import PretrainingConfig
from .data import Batch, Place, batches
from .objective import Base, Objective


class Taken(NamedTuple):
    """One step. loss: its mean. skipped: broken samples so far. stop: whether any process was asked to stop."""

    loss: float
    skipped: int
    stop: bool


class Pretraining:
    """A pre-training in progress, in each process. accelerator: Hugging Face's, for the exchange between processes."""

    def __init__(self, config: PretrainingConfig, base: Base, encoder: SubjectEncoder, accelerator: Any) -> None:
        self.config, self.base, self.accelerator = config, base, accelerator
        self.step, self.places = 0, torch.zeros(config.batch, len(Place._fields), dtype=torch.int64)
        rows = config.rows_of(accelerator.num_processes)
        self.rows = range(accelerator.process_index * rows, (accelerator.process_index + 1) * rows)
        encoder.requires_grad_(False)
        for parameter in encoder.learned():
            parameter.requires_grad_(True)
        self.objective = accelerator.prepare(Objective(config, base, encoder))  # shares gradients among the processes
        self.encoder = encoder
        self.parameters = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()} if config.ema else {}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=0.0, weight_decay=config.weight_decay)
        self.batches: Iterator[list[Batch]] | None = None
        self.whole = True  # whether the state is that after `step` steps; False while an update is being applied
        self.stop = False  # set from outside: the current step is the last

    def advance(self) -> Taken:
        """Take one step. If it raises while `whole` is True, the state is that before the step.

        Raises ValueError, in one sentence, for a loss or gradient that is not finite, and RuntimeError if another
        process is lost.
        """
        if self.batches is None:
            left = [Place(*self.places[row].tolist()) for row in self.rows]
            self.batches = batches(self.config, self.base.tower_side, self.step, self.rows, left)
        parts = next(self.batches)
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for i, part in enumerate(parts, start=1):
            with ExitStack() as hooks:
                if i < len(parts):
                    hooks.enter_context(self.accelerator.no_sync(self.objective))
                loss = self.objective(part, hooks)  # [rows of the part]
                self.accelerator.backward(loss.mean() / len(parts))
                losses.append(loss.detach())
        taken, places = self._gathered(torch.cat([part.places for part in parts]), torch.cat(losses))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), LARGEST_GRADIENT)
        if not (math.isfinite(taken.loss) and math.isfinite(norm)):
            raise ValueError(
                f"the loss or its gradient is not finite (step {self.step + 1}); lower learning_rate, or set precision "
                "to fp32."
            )
        self.whole = False
        self._update()
        self.step, self.places, self.whole = self.step + 1, places, True
        return taken

    def _gathered(self, places: Tensor, losses: Tensor) -> tuple[Taken, Tensor]:
        """Gather places [rows, 3] and losses [rows] of all processes; the last exchange of a step."""
        stop = torch.full((len(losses), 1), float(self.stop), dtype=torch.float64)
        mine = torch.cat([places.double(), losses[:, None].double().cpu(), stop], dim=1)
        every = self.accelerator.gather(mine.to(self.accelerator.device)).cpu()  # [batch, 5], in the rows' order
        taken = Taken(float(every[:, 3].mean()), int(every[:, 2].sum()), bool(every[:, 4].any()))
        return taken, every[:, :3].long()

    def _update(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.step)
        self.optimizer.step()
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))  # quicker at the start
        for name, average in self.averages.items():
            average.lerp_(self.parameters[name].detach(), 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, copied to the CPU."""
        state = {"step": torch.tensor(self.step), "places": self.places}
        state |= {f"average.{name}": average for name, average in self.averages.items()}
        copied = {name: x.to("cpu", copy=True).contiguous() for name, x in state.items()}
        return copied | optimizer_state(self.optimizer, self.parameters)

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Resume from a state. Raises ValueError, without changes, for a state of another encoder."""
        if not self._is_own(state):
            raise ValueError(
                "the newest checkpoint is damaged, or has other parameters than this encoder; delete it, or give this "
                "run its own folder."
            )
        load_optimizer_state(self.optimizer, self.parameters, state)
        for name, average in self.averages.items():
            average.copy_(state[f"average.{name}"])
        self.step, self.places, self.batches = int(state["step"]), state["places"].clone(), None

    def _is_own(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the state is complete, matches this encoder in names, shapes and types, and is all numbers."""
        wanted = {"step": torch.tensor(0), "places": self.places}
        wanted |= {f"average.{name}": x for name, x in self.averages.items()}
        others = {name: x for name, x in state.items() if not name.startswith(OPTIMIZER)}
        return (
            others.keys() == wanted.keys()
            and all((others[name].shape, others[name].dtype) == (x.shape, x.dtype) for name, x in wanted.items())
            and all(bool(torch.isfinite(x).all()) for x in others.values())
            and bool((others["step"] >= 0) & (others["places"] >= 0).all())
            and is_optimizer_state(state, self.parameters, stepped=bool(others["step"]))
        )

    def learned(self) -> dict[str, Tensor]:
        """The weights to export, by name: the averaged ones if ema is set."""
        return self.averages or {name: p.detach() for name, p in self.parameters.items()}
