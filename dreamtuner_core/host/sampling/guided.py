"""A guided step: Eq. 6 chooses Eq. 4 or Eq. 5, and the host's own CFG computes it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
from torch import Tensor

from ...guidance import Guidance, step_sigma
from ..options import SAMPLE_SIGMAS

Conds = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class GuidedStep:
    """One step. wanted: the positive conditionings, by the host's ids. toward_reference: Eq. 4, else Eq. 5."""

    wanted: dict[uuid.UUID, dict[str, Any]]
    with_reference: Conds
    without: Conds
    toward_reference: bool


def draw_step(guidance: Guidance, conds: Mapping[str, Conds], call: Mapping[str, Any]) -> GuidedStep:
    """Eq. 6's draw. conds: the guider's, by side. call: arguments of its predict_noise."""
    positive = conds["positive"]
    # Eq. 4 asks under ids of its own, the same ones in each step: what caches by id (EasyCache) then never takes
    # the answer to one equation for that to the other.
    with_reference, without = (_under_ids_of(side, positive) for side in ("with reference", "without"))
    wanted = {c["uuid"]: c for c in (*positive, *with_reference)}
    for cond in (c for name in conds if name != "positive" for c in conds[name]):
        if cond["uuid"] in wanted:  # the host copies a regional conditioning to the other side, id and all
            cond["uuid"] = uuid.uuid4()
    schedule = call["model_options"]["transformer_options"].get(SAMPLE_SIGMAS, call["timestep"]).tolist()
    sigma = step_sigma(float(call["timestep"].max()), schedule)
    toward_reference = guidance.toward_reference(call.get("seed") or 0, sigma)
    return GuidedStep(wanted, with_reference, without, toward_reference)


def predict_toward_reference(step: GuidedStep, reference_scale: float, model: Any, call: Mapping[str, Any]) -> Tensor:
    """Eq. 4: classifier-free guidance of scale w_r; its negative side is the same text without the reference."""
    return comfy.samplers.sampling_function(
        model,
        call["x"],
        call["timestep"],
        step.without,
        step.with_reference,
        reference_scale,
        model_options=call["model_options"],
        seed=call.get("seed"),
    )


def _under_ids_of(side: str, conds: Conds) -> Conds:
    """The same conditionings with new ids, the same ones every time."""
    return [{**c, "uuid": uuid.uuid5(c["uuid"], side)} for c in conds]
