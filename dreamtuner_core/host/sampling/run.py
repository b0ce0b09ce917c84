"""How subjects and guidance take part in a sampling run, without leaving a trace after it.

A node only stores its settings on a clone of the model, and adds one OUTER_SAMPLE wrapper. When a run begins, that
wrapper creates the run's state and adds more wrappers for this run only, from the outside in:

- PREDICT_NOISE, around a step: stores the whole images; with guidance it chooses Eq. 4 or Eq. 5;
- CALC_COND_BATCH, around a guider's request: stores the number of images, and whether a subject should be read;
- APPLY_MODEL, before other packs': determines the rows of this call and what they read, and runs the reference pass;
- DIFFUSION_MODEL, after other packs': replaces each self-attention, around other packs' replacements.
  With EasyCache, which may skip a step, the reference pass waits until here.

Only the cached features (host/memory) stay after the run.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from ...bank import Features
from ...guidance import position, shift_sigma
from ...subject import Subject
from ..encoder.patch import DUAL, EncoderAtWork, on_wanted_side, with_encoders
from ..options import EASY_CACHE, SIGMAS, Options, ids, sides
from ..progress import warn
from ..rows import UNKNOWN, Batch, Row, rows_of_call
from ..settings import KEY, NoiseRange, Settings
from ..subject.rights import tell_rights_of_run
from ..unet import self_attentions
from .features import References
from .guided import GuidedStep, draw_step, predict_toward_reference
from .patch import Call, Read, Reader, Reading
from .regions import Area, Regions

_OF_UNET = inspect.signature(UNetModel._forward)
NEVER_READ = (
    "DreamTuner: the subject was never looked at in this run. Another node computes the picture past ComfyUI's own "
    "U-Net (DeepCache does, for one); remove it to see the subject."
)


def sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """OUTER_SAMPLE wrapper: create this run's own state and options, and restore the guider after it."""
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
        _arguments(inspect.signature(executor.original), args, kwargs)["noise"].shape,
    )
    tell_rights_of_run(a.subject for a in (*subjects, *encoders))
    options = guider.model_options
    guider.model_options = comfy.model_patcher.create_model_options_clone(options)
    run.join(guider.model_options["transformer_options"])
    try:
        made = executor(*args, **kwargs)
    finally:
        guider.model_options = options
        run.references.kept.announce()
    run.warn_if_unread()
    return made


class Run:
    """The state of one sampling run. shape: of its noise, [B, C, ..., h, w]."""

    def __init__(self, guider: Any, settings: Settings, shape: Sequence[int]) -> None:
        self.guider = guider
        self.settings = settings
        self.layers = list(self_attentions(guider.model_patcher))
        self.references = References(guider.model_patcher, [a.subject for a in settings.subjects], self.layers, shape)
        model_sampling = guider.model_patcher.get_model_object("model_sampling")
        self.sigmas = model_sampling.sigmas.tolist()
        self.ranges = [NoiseRange.of(applied, model_sampling) for applied in settings.subjects]
        self.encoder_ranges = [NoiseRange.of(applied, model_sampling) for applied in settings.encoders]
        self.encoders = [EncoderAtWork(applied, self.layers) for applied in settings.encoders]
        self.regions = Regions([a.region for a in settings.subjects], shape)
        self.step: GuidedStep | None = None
        self.call: Call | None = None
        self.pictures: Tensor | None = None  # [B, C, ..., h, w] of the step
        self.asked = shape[0]  # pictures that the host asks about
        self.due: set[str] = set()  # what should be read in this run
        self.seen: set[int] = set()  # subjects that were read
        self.log_ms: dict[Hashable, Any] = {}
        self.signature = cache(inspect.signature)

    def join(self, options: Options) -> None:
        """Add the run's wrappers to its transformer_options."""
        add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self.predict, options)
        add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, self.ask, options)
        add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, self.claim, options)
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, self.prepare, options)
        wrappers = options["wrappers"]
        others = {key: added for key, added in wrappers[WrappersMP.APPLY_MODEL].items() if key != KEY}
        wrappers[WrappersMP.APPLY_MODEL] = {KEY: wrappers[WrappersMP.APPLY_MODEL][KEY], **others}

    def warn_if_unread(self) -> None:
        """Warn, in the log and on the running node, if a subject should have been read and never was."""
        silent = "subject" in self.due and not self.seen
        silent |= "encoder" in self.due and not any(e.was_read for e in self.encoders)
        if silent:
            warn(NEVER_READ)

    def active(self, sigma: float) -> list[int]:
        """Indices of the subjects that are applied at this noise level."""
        return [i for i, levels in enumerate(self.ranges) if levels.holds(sigma)]

    def active_encoders(self, sigma: float, subject: Subject | None = None) -> list[EncoderAtWork]:
        """The subject encoders applied at this noise level, all of them or those of one subject."""
        found = [e for e, levels in zip(self.encoders, self.encoder_ranges) if levels.holds(sigma)]
        return found if subject is None else [e for e in found if e.encoding is subject.encoding]

    def _arguments(self, executor: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        return _arguments(self.signature(executor.original), args, kwargs)

    # --- a step --------------------------------------------------------------------------------------------------

    def predict(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """PREDICT_NOISE wrapper: store the step's images; with guidance, predict by Eq. 4 or Eq. 5."""
        call = self._arguments(executor, args, kwargs)
        self.pictures = call["x"]
        try:
            guidance, conds = self.settings.guidance, self.guider.conds
            if guidance is not None and "positive" in conds and self.active(float(call["timestep"].max())):
                self.step = draw_step(guidance, conds, call)
                if self.step.toward_reference:
                    scale, model = guidance.reference_scale, self.guider.inner_model
                    return predict_toward_reference(self.step, scale, model, call)
            return executor(*args, **kwargs)
        finally:
            self.pictures = self.step = None

    def ask(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """CALC_COND_BATCH wrapper: store the number of images in this request, and what should be read."""
        call = self._arguments(executor, args, kwargs)
        sigma = float(call["timestep"].max())
        self.due |= {"subject"} if self.active(sigma) else set()
        self.due |= {"encoder"} if self.active_encoders(sigma) else set()
        before, self.asked = self.asked, len(call["x_in"])
        try:
            return executor(*args, **kwargs)
        finally:
            self.asked = before

    # --- a call of the model -------------------------------------------------------------------------------------

    def prepare(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """APPLY_MODEL wrapper: determine the rows of this call and what they read, before other packs change it."""
        call = self._arguments(executor, args, kwargs)
        self.call = self._call(call["x"], call["t"], call["c_crossattn"], call["transformer_options"])
        try:
            return executor(*args, **kwargs)
        finally:
            self.call = None

    def _call(self, x: Tensor, sigmas: Tensor, context: Tensor | None, options: Options) -> Call | None:
        """The call's rows, what they read, and the features of it; None if nothing is read."""
        sigma = float(options.get(SIGMAS, sigmas).max())
        if not self.active(sigma) and not self.active_encoders(sigma):
            return None
        of_chunks, places = ids(options), sides(options)
        wanted = [self._wanted(cond_id, side) for cond_id, side in zip(of_chunks, places)]
        readings = [self._reading(side, sigma) for side in wanted]
        regions = self.regions and any(readings)
        if regions or len({*zip(wanted, readings)}) > 1:
            rows = rows_of_call(len(x), len(places), self.asked, context)
        else:  # all read the same
            rows = [Row(0, UNKNOWN)] * len(x)
        areas = [self._area(cond_id) for cond_id in of_chunks] if regions else []
        spots = self.regions.spots(x, rows, areas, self.pictures, self.asked) if regions else []
        features = cache(lambda: self._features_of(readings, sigma, sigmas[:1]))
        if not _may_be_skipped(options):
            features()
        return Call(
            sigma=sigma,
            batch=Batch(rows, places),
            wanted=wanted,
            readings=readings,
            features=features,
            spots=spots,
        )

    def _wanted(self, cond_id: uuid.UUID | None, side: int) -> bool:
        """Whether that conditioning is on the positive side, which is the one that reads a subject encoder."""
        if self.step is None:
            return on_wanted_side(self.guider.conds, cond_id, side)
        if cond_id is not None:
            return cond_id in self.step.wanted
        return side == (2 if DUAL in self.guider.conds and not self.step.toward_reference else 0)

    def _reading(self, wanted: bool, sigma: float) -> Reading:
        """The subjects that a conditioning on that side reads at this noise level."""
        if not wanted and self.step is not None and self.step.toward_reference:
            return ()  # Eq. 4's "none"
        guidance = self.settings.guidance if self.step is not None else None
        shift = 0.0 if guidance is None else -guidance.dt if wanted else guidance.dt_uncond
        reads = (Read(i, shift, self.weight(i, wanted, sigma)) for i in self.active(sigma))
        return tuple(read for read in reads if read.weight > 0)

    def weight(self, i: int, wanted: bool, sigma: float) -> float:
        """w_ref of subject i on that side at this noise level."""
        applied = self.settings.subjects[i]
        percent = 1 - position(sigma, self.sigmas) / (len(self.sigmas) - 1)
        return applied.weight_at(percent) * (1.0 if wanted else applied.negative_weight)

    def _area(self, cond_id: uuid.UUID | None) -> Area:
        conds = {c["uuid"]: c for side in self.guider.conds.values() for c in side}
        area = (conds | (self.step.wanted if self.step else {})).get(cond_id, {}).get("area")
        return None if area is None else tuple(area)

    def _features_of(
        self, readings: Sequence[Reading], sigma: float, network: Tensor
    ) -> dict[tuple[int, float], Features]:
        """The references' keys and values, by subject and shift. network: [1], the noise level that it is told."""
        found = {}
        for i, shift in dict.fromkeys(read[:2] for reading in readings for read in reading):
            level = shift_sigma(sigma, shift, self.sigmas)
            encoders = self.active_encoders(sigma, self.settings.subjects[i].subject)
            found[i, shift] = self.references.features(i, level, network, encoders)
        return found

    # --- the U-Net -----------------------------------------------------------------------------------------------

    def claim(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """DIFFUSION_MODEL wrapper: for this call only, the U-Net's layers read the subject."""
        if self.call is None:
            return executor(*args, **kwargs)
        bound = _OF_UNET.bind(None, *args, **kwargs)  # a forward that another pack put there may name none of them
        bound.apply_defaults()
        options: Options = bound.arguments["transformer_options"]
        bound.arguments["transformer_options"] = self._joined(options, self.call)
        return executor(*bound.args[1:], **bound.kwargs)

    def _joined(self, options: Options, call: Call) -> Options:
        """The options with Eq. 1 and Eq. 3 added."""
        call.features()
        if encoders := self.active_encoders(call.sigma):
            options = with_encoders(options, encoders, call.wanted, self.layers, call.batch)
        reader = Reader(call, self.settings.subjects, self.regions, self.log_ms, self.seen)
        return reader.joined(options, self.layers) if any(call.readings) else options


def _may_be_skipped(options: Options) -> bool:
    """Whether EasyCache, and no other pack, wraps the U-Net: it may answer instead of it.

    Then the reference pass waits until the U-Net is called. Other packs change the U-Net inside their wrappers
    (AnimateDiff computes its norms over all frames), so with them the reference pass runs before.
    """
    around = options["wrappers"].get(WrappersMP.DIFFUSION_MODEL, {})
    return {key for key, wrappers in around.items() if wrappers} - {KEY} == {EASY_CACHE}


def _arguments(signature: inspect.Signature, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, whether they came by position or keyword."""
    call = signature.bind(*args, **kwargs)
    call.apply_defaults()
    return call.arguments
