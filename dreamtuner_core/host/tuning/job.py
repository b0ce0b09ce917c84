"""A tuning as data: the checked inputs, and what is derived from them. Nothing here trains or writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from typing import Any

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ...rights import OwnedSubject
from ...subject import Subject
from ...texts import checked_name
from ...tuning.config import TuningConfig
from .. import fingerprint
from ..apply import check_fit
from ..settings import AppliedEncoder
from ..unet import context_size
from .encoder import applied_encoder
from .files import SETTINGS, TuningFiles
from .predict import parametrisation
from .progress import Progress
from .texts import ClassTexts, tokenize


@dataclass(frozen=True, eq=False)
class Job:
    """One tuning of one name. Raises ValueError, in one sentence, if the inputs do not fit together.

    config: the precision "auto" is replaced by that for the model's device.
    """

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: Any
    subject: Subject
    class_word: str
    name: str
    config: TuningConfig
    node_id: str | None = None

    def __post_init__(self) -> None:
        _check_parts(self)
        object.__setattr__(self, "config", replace(self.config, precision=_precision(self.config, self.device)))
        if self.texts.width != (expected := context_size(self.model)):
            raise ValueError(
                f"the clip encodes text with width {self.texts.width}, but this model needs width {expected}; link the "
                "CLIP of the model's own checkpoint."
            )
        assert self.files.name  # a bad name, and a model that predicts neither eps nor v, raise here, before the work
        assert self.parametrisation

    @property
    def device(self) -> torch.device:
        return self.model.load_device

    @cached_property
    def texts(self) -> ClassTexts:
        return ClassTexts(self.clip, self.class_word)

    @cached_property
    def encoded(self) -> Callable[[str], list]:
        """Gives a text as the host's CONDITIONING, by the untrained text encoder; each is encoded once."""
        return cache(lambda text: self.clip.encode_from_tokens_scheduled(tokenize(self.clip, text)))

    @cached_property
    def encoder(self) -> AppliedEncoder | None:
        """The subject encoder on the model, if it is trained too."""
        return applied_encoder(self.model, self.subject) if self.config.encoder_resblocks else None

    @cached_property
    def files(self) -> TuningFiles:
        return TuningFiles(checked_name(self.name), with_encoder=self.encoder is not None)

    @cached_property
    def parametrisation(self) -> str:
        return parametrisation(self.model.get_model_object("model_sampling"))

    @cached_property
    def progress(self) -> Progress:
        return Progress(self.node_id, self.config)

    @cached_property
    def key(self) -> str:
        """A hash of everything that the result depends on, except the number of steps."""
        key = fingerprint.Fingerprint().add(self.config.outcome(), self.texts.class_word)
        key.add(fingerprint.of_model(self.model), fingerprint.of_patches(self.model))
        key.add(fingerprint.of_model(self.clip.patcher), self.clip.layer_idx)
        if self.encoder is not None:
            key.add(fingerprint.of_network(self.encoder.encoding.encoder.model))
        return key.add(fingerprint.of_network(self.vae.first_stage_model), fingerprint.of_subject(self.subject)).text()

    def metadata(self, steps: int) -> dict[str, str]:
        """The metadata of a file of this tuning after so many steps."""
        settings = {"key": self.key, "class_word": self.texts.class_word, "steps": steps, "config": asdict(self.config)}
        if isinstance(self.subject, OwnedSubject):
            settings["rights"] = asdict(self.subject.rights)  # they apply to everybody who has the file
        return {SETTINGS: json.dumps(settings, ensure_ascii=False)}

    def least_metadata(self, steps: int) -> dict[str, str]:
        """Only the metadata that resuming needs, without texts from outside."""
        return {SETTINGS: json.dumps({"key": self.key, "steps": steps})}


def _check_parts(job: Job) -> None:
    check_fit(job.model, job.subject)
    for what, given, needed in (("clip", job.clip, "patcher"), ("vae", job.vae, "first_stage_model")):
        if getattr(given, needed, None) is None:
            raise ValueError(
                f"expected the {what} of the model's own checkpoint, but got a {type(given).__name__}; link it instead."
            )


def _precision(config: TuningConfig, device: torch.device) -> str:
    if config.precision != "auto":
        return config.precision
    if config.method == "full" or device.type == "cpu":  # bf16 rounds the small steps of a full tuning away
        return "fp32"
    return "bf16" if comfy.model_management.should_use_bf16(device) else "fp32"
