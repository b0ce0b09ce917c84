"""AdamW's parameters and moments by name, as the checkpoints of tuning and of pre-training hold them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of each parameter
OPTIMIZER = ("parameter.", "optimizer.")  # how the names in an optimizer's state begin
LARGEST_GRADIENT = 1.0  # norm over all parameters; a larger gradient is scaled down to it


def optimizer_state(optimizer: torch.optim.AdamW, parameters: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """The parameters as parameter.<name> and their moments as optimizer.<name>.<moment>, copied to the CPU."""
    state: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        moments = optimizer.state.get(parameter, {})
        state[f"parameter.{name}"] = parameter
        state |= {f"optimizer.{name}.{key}": moments[key] for key in MOMENTS if key in moments}
    return {name: x.detach().to("cpu", copy=True).contiguous() for name, x in state.items()}


@torch.no_grad()
def load_optimizer_state(
    optimizer: torch.optim.AdamW, parameters: Mapping[str, Parameter], state: Mapping[str, Tensor]
) -> None:
    """Set the parameters and their moments to those of an `optimizer_state` with the same names and shapes."""
    for name, parameter in parameters.items():
        parameter.copy_(state[f"parameter.{name}"])
        moments = {key: state[f"optimizer.{name}.{key}"] for key in MOMENTS if f"optimizer.{name}.{key}" in state}
        # AdamW has its count of steps on the CPU, and the moments on their parameter's device
        optimizer.state[parameter] = {
            key: x.clone() if key == "step" else x.to(parameter.device, copy=True) for key, x in moments.items()
        }


def is_optimizer_state(state: Mapping[str, Tensor], parameters: Mapping[str, Parameter], stepped: bool) -> bool:
    """Whether an `optimizer_state` of these parameters is in the state, in its shapes and types, and all numbers.

    stepped: whether a step was taken; before the first one there are no moments.
    """
    wanted: dict[str, Tensor] = {f"parameter.{name}": p for name, p in parameters.items()}
    wanted |= {
        f"optimizer.{name}.{key}": torch.zeros(()) if key == "step" else p
        for name, p in parameters.items()
        for key in (MOMENTS if stepped else ())
    }
    found = {name: x for name, x in state.items() if name.startswith(OPTIMIZER)}
    return found.keys() == wanted.keys() and all(
        (found[name].shape, found[name].dtype) == (x.shape, x.dtype) and bool(torch.isfinite(found[name]).all())
        for name, x in wanted.items()
    )
