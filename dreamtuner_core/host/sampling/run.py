"""How subjects and guidance take part in a sampling run, and leave no trace of themselves after it.

A node only notes its settings on a clone of the model, and adds one OUTER_SAMPLE wrapper. When a run begins, that
wrapper makes the run's state and hangs two more wrappers on this run alone: around the U-Net (to claim each
self-attention at the last moment, around whatever other packs put there), and, where there is guidance, around the
prediction. Nothing of it outlives the run but the kept features, which belong to the subject.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from ...attention import LogWeightChannels, ReferenceTokens
from ...bank import Features
from ...guidance import position, shift_sigma, step_sigma
from ...subject import Subject, to_grid
from ..encoder.patch import EncoderAtWork, on_wanted_side, with_encoders
from ..options import Options
from ..settings import KEY, Settings
from ..subject.memory import announce
from ..subject.rights import tell_rights_of_run
from ..unet import Layer, self_attentions
from .patch import TokenFollower, reading_patch
from .reference import FeaturesKey, features_key, reference_features, text_conditions

Area = tuple[int, ...] | None
"""(height, width, top, left) of a regional conditioning, in latents."""
Grid = tuple[int, int]
"""Rows and columns of a layer's tokens."""


def sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """OUTER_SAMPLE wrapper: give this run its own state and options, and take them away after it."""
    guider = executor.class_obj
    settings = guider.model_patcher.get_attachment(KEY)
    subjects = tuple(a for a in settings.subjects if a.weight > 0 or a.end_weight) if settings else ()
    encoders = tuple(a for a in settings.encoders if a.strength > 0) if settings else ()
    if not subjects and not encoders:
        return executor(*args, **kwargs)

    if guider.model_patcher.get_additional_models_with_key("multigpu"):
        raise ValueError(
            "DreamTuner: expected a model on one GPU, but this one is split over several; take the MultiGPU node out."
        )
    run = Run(
        guider,
        replace(settings, subjects=subjects, encoders=encoders),
        _bind(executor, args, kwargs).arguments["noise"].shape,
    )
    tell_rights_of_run(a.subject for a in (*subjects, *encoders))
    options = guider.model_options
    guider.model_options = comfy.model_patcher.create_model_options_clone(options)
    transformer_options = guider.model_options["transformer_options"]
    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, run.forward, transformer_options)
    if settings.guidance is not None:
        add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, run.predict, transformer_options)
    try:
        return executor(*args, **kwargs)
    finally:
        guider.model_options = options
        announce([a.subject.keeper for a in subjects if a.subject.keeper is not None])


@dataclass(frozen=True)
class GuidedStep:
    """The conditionings of the wanted side, by the host's ids, and which of Eq. 4 and 5 this step follows."""

    wanted: dict[uuid.UUID, dict[str, Any]]
    toward_reference: bool


class Read(NamedTuple):
    """One subject as some rows read it. subject: its index. shift: of its noise level, in timesteps. weight: w_ref."""

    subject: int
    shift: float
    weight: float


class Reading(NamedTuple):
    """What the rows of one conditioning read, and the rows' own area."""

    reads: tuple[Read, ...]
    area: Area


class Run:
    """The state of one sampling run. shape: of its noise, [B, C, ..., h, w]."""

    def __init__(self, guider: Any, settings: Settings, shape: Sequence[int]) -> None:
        self.guider = guider
        self.settings = settings
        self.latent_size = tuple(shape[-2:])
        both_sides = [2 * shape[0], *shape[1:]]
        # as the host reckons before it takes both sides into one batch; what is kept must not undo that
        self.reserve = max(
            1.5 * guider.model_patcher.model.memory_required(both_sides),
            comfy.model_management.minimum_inference_memory(),
        )
        self.layers = list(self_attentions(guider.model_patcher))
        model_sampling = guider.model_patcher.get_model_object("model_sampling")
        self.sigmas = model_sampling.sigmas.tolist()
        self.ranges, self.encoder_ranges = (
            [tuple(float(model_sampling.percent_to_sigma(percent)) for percent in (a.start, a.end)) for a in applied]
            for applied in (settings.subjects, settings.encoders)
        )
        self.encoders = [EncoderAtWork(applied, self.layers) for applied in settings.encoders]
        self.step: GuidedStep | None = None
        self.conditions: dict[int, dict[str, Tensor]] = {}
        self.channels: dict[Hashable, LogWeightChannels] = {}
        self.regions: dict[tuple[int, Grid, Area], Tensor] = {}
        self.newest: dict[tuple[int, FeaturesKey], Features] = {}
        for subject in {id(a.subject): a.subject for a in settings.subjects}.values():
            subject.bank.begin_run()

    def active(self, sigma: float) -> list[int]:
        """Indices of the subjects that are read at this noise level."""
        return [i for i, (first, last) in enumerate(self.ranges) if last <= sigma <= first]

    def active_encoders(self, sigma: float, subject: Subject | None = None) -> list[EncoderAtWork]:
        """The subject encoders at work at this noise level, all of them or those of one subject."""
        found = [e for e, (first, last) in zip(self.encoders, self.encoder_ranges) if last <= sigma <= first]
        return found if subject is None else [e for e in found if e.encoding is subject.encoding]

    # --- guidance ------------------------------------------------------------------------------------------------

    def predict(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """PREDICT_NOISE wrapper: Eq. 6 draws, Eq. 4 or Eq. 5 predicts."""
        call = _bind(executor, args, kwargs).arguments
        conds, sigma = self.guider.conds, float(call["timestep"].max())
        guidance = self.settings.guidance
        if guidance is None or not self.active(sigma) or "positive" not in conds:
            return executor(*args, **kwargs)

        positive = conds["positive"]
        # Eq. 4 asks under ids of its own, the same ones in each step: what caches by id (EasyCache) then never takes
        # the answer to one equation for that to the other.
        with_reference, without = (_under_ids_of(side, positive) for side in ("with reference", "without"))
        wanted = {c["uuid"]: c for c in (*positive, *with_reference)}
        for cond in (c for name in conds if name != "positive" for c in conds[name]):
            if cond["uuid"] in wanted:  # the host copies a regional conditioning to the other side, id and all
                cond["uuid"] = uuid.uuid4()
        schedule = call["model_options"]["transformer_options"]["sample_sigmas"].tolist()
        toward_reference = guidance.toward_reference(call.get("seed") or 0, step_sigma(sigma, schedule))
        self.step = GuidedStep(wanted, toward_reference)
        try:
            if not toward_reference:
                return executor(*args, **kwargs)
            return comfy.samplers.sampling_function(  # Eq. 4: the same text without the reference, at w_r
                self.guider.inner_model,
                call["x"],
                call["timestep"],
                without,
                with_reference,
                guidance.reference_scale,
                model_options=call["model_options"],
                seed=call.get("seed"),
            )
        finally:
            self.step = None

    def readings(self, options: Options, sigma: float) -> list[Reading]:
        """What each chunk of the batch reads."""
        ids = options.get("uuids") or [None] * len(options.get("cond_or_uncond") or [0])
        return [self._reading(*chunk, sigma) for chunk in zip(ids, self.wanted(options))]

    def _reading(self, cond_id: uuid.UUID | None, wanted: bool, sigma: float) -> Reading:
        conds = {c["uuid"]: c for side in self.guider.conds.values() for c in side}
        area = (conds | (self.step.wanted if self.step else {})).get(cond_id, {}).get("area")
        area = None if area is None else tuple(area)
        if not wanted and self.step is not None and self.step.toward_reference:
            return Reading((), area)  # Eq. 4's "none"
        guidance = self.settings.guidance if self.step is not None else None
        shift = 0.0 if guidance is None else -guidance.dt if wanted else guidance.dt_uncond
        reads = (Read(i, shift, self.weight(i, wanted, sigma)) for i in self.active(sigma))
        return Reading(tuple(read for read in reads if read.weight > 0), area)

    def weight(self, i: int, wanted: bool, sigma: float) -> float:
        """w_ref of that subject on that side at this noise level."""
        applied = self.settings.subjects[i]
        percent = 1 - position(sigma, self.sigmas) / (len(self.sigmas) - 1)
        return applied.weight_at(percent) * (1.0 if wanted else applied.negative_weight)

    def wanted(self, options: Options) -> list[bool]:
        """Of each chunk of the batch, whether it is on the wanted side, the one that a subject encoder is read by."""
        sides = options.get("cond_or_uncond") or [0]
        ids = options.get("uuids") or [None] * len(sides)
        return [self._wanted(cond_id, side) for cond_id, side in zip(ids, sides)]

    def _wanted(self, cond_id: uuid.UUID | None, side: int) -> bool:
        if self.step is not None:
            return cond_id in self.step.wanted
        return on_wanted_side(self.guider.conds, cond_id, side)

    # --- the U-Net -----------------------------------------------------------------------------------------------

    def forward(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """DIFFUSION_MODEL wrapper: for this call alone, every self-attention becomes Eq. 3."""
        call = _bind(executor, args, kwargs)
        options: Options = call.arguments["transformer_options"]
        timesteps: Tensor = call.arguments["timesteps"]
        sigma = float(options["sigmas"].max())
        encoders = self.active_encoders(sigma)
        if encoders:
            options = with_encoders(options, encoders, self.wanted(options), self.layers)
            call.arguments["transformer_options"] = options
        chunks = self.readings(options, sigma)
        if not any(reading.reads for reading in chunks):
            return executor(*call.args, **call.kwargs)

        features = {
            (i, shift): self.features(i, sigma, shift, timesteps[:1])
            for i, shift in dict.fromkeys(read[:2] for reading in chunks for read in reading.reads)
        }
        replaced = options.get("patches_replace", {}).get("attn1", {})

        def references(layer: Layer) -> Callable[[Reading, Grid], list[ReferenceTokens]]:
            def read(reading: Reading, grid: Grid) -> list[ReferenceTokens]:
                kept = [features[i, shift][layer] for i, shift, _ in reading.reads]
                return [
                    ReferenceTokens(k, v, weight * mask, self.region(i, grid, reading.area, timesteps.device))
                    for (i, _, weight), (k, v, mask) in zip(reading.reads, kept)
                ]

            return read

        follower = TokenFollower()
        attn1 = {
            layer: reading_patch(
                replaced.get(layer, replaced.get(layer[:2])),
                references(layer),
                [self.at_layer(reading, layer) for reading in chunks],
                follower,
                self.channels,
            )
            for layer in self.layers
        }
        patches = options.get("patches", {})
        if "attn1_patch" in patches and any(self.settings.subjects[i].region is not None for i, _ in features):
            patches = {**patches, "attn1_patch": follower.around(patches["attn1_patch"])}
        call.arguments["transformer_options"] = {
            **options,
            "patches": patches,
            "patches_replace": {**options.get("patches_replace", {}), "attn1": {**replaced, **attn1}},
        }
        return executor(*call.args, **call.kwargs)

    def at_layer(self, reading: Reading, layer: Layer) -> Reading:
        """The same reading without the subjects that this layer does not look at."""
        return reading._replace(
            reads=tuple(r for r in reading.reads if layer.block in self.settings.subjects[r.subject].blocks)
        )

    def features(self, i: int, sigma: float, shift: float, timestep: Tensor) -> Features:
        """The reference's keys and values at this noise level: kept from before, or computed now."""
        level = shift_sigma(sigma, shift, self.sigmas)
        subject, patcher, device = self.settings.subjects[i].subject, self.guider.model_patcher, timestep.device
        encoders = self.active_encoders(sigma, subject)
        key = features_key(patcher, self.layers, level, float(timestep), [(e.encoding, e.strength) for e in encoders])
        found = self.newest.get((i, key)) or subject.bank.get(key, device)
        if found is None:
            if i not in self.conditions:
                self.conditions[i] = text_conditions(patcher, subject, device)
            told = self.conditions[i]
            found = reference_features(patcher.model, subject, told, self.layers, level, timestep, encoders)
            if subject.keeper is not None:
                subject.keeper.keep(key, found, self.reserve)
        self.newest = {k: kept for k, kept in self.newest.items() if k[1].timestep == key.timestep} | {(i, key): found}
        return found

    def region(self, i: int, grid: Grid, area: Area, device: torch.device) -> Tensor | None:
        """[N]: how much of this subject each token of a layer's grid may see."""
        region = self.settings.subjects[i].region
        if region is None:
            return None
        if (i, grid, area) not in self.regions:
            seen = to_grid(region, *self.latent_size).reshape(1, *self.latent_size)
            if area is not None:
                height, width, top, left = area
                seen = seen[:, top : top + height, left : left + width]
            self.regions[i, grid, area] = to_grid(seen, *grid).to(device)
        return self.regions[i, grid, area]


def _under_ids_of(side: str, conds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conditionings under other ids, always the same ones."""
    return [{**c, "uuid": uuid.uuid5(c["uuid"], side)} for c in conds]


def _bind(executor: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> inspect.BoundArguments:
    """The wrapped call's arguments by name, whatever of them came by position."""
    call = inspect.signature(executor.original).bind(*args, **kwargs)
    call.apply_defaults()
    return call
