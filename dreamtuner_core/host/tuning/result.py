"""The result of a tuning: its files, loaded as the host's own nodes load them, and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...tuned_subject import TunedSubject
from ...tuning.config import milestones
from ...tuning.report import report
from ..files import file_hash, place, read
from .encoder import with_tuned_encoder
from .job import Job
from .store import SAMPLE_SEEDS, embedding_key, samples_of, stored_state


class Tuned(NamedTuple):
    """The outputs of a tuning. report: [1, H, W, 3] in 0..1."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    subject: TunedSubject
    report: Tensor


def result(job: Job) -> Tuned:
    """The outputs, from the files on disk. Raises ValueError if one is missing or damaged."""
    found = {path: read(path) for path in (job.files.lora, job.files.embedding)}
    for path, content in found.items():
        if content is None:
            raise ValueError(f"{place(path)} is missing or damaged; queue again to write it again.")
    lora, words = (content[0] for content in found.values() if content is not None)
    model, clip = comfy.sd.load_lora_for_models(job.model, job.clip, lora, 1.0, 1.0)
    subject = job.subject
    if job.encoder is not None:
        model, subject = with_tuned_encoder(model, job.encoder, subject, job.files.encoder.name)
    tuned = TunedSubject(
        subject=subject,
        class_word=job.texts.class_word,
        name=job.files.name,
        lora_hash=file_hash(job.files.lora),
        steps=job.config.steps,
        words=_words(words, job.texts.words),
    )
    return Tuned(model, clip, tuned, _report(job))


def _report(job: Job) -> Tensor:
    """The loss, and the samples nearest to the milestones, from the state on disk: [1, H, W, 3] in 0..1."""
    state = stored_state(job) or {}
    samples, a_class = samples_of(state), job.texts.a_class
    asked = milestones(job.config.steps) if samples else []
    shown = {min(samples, key=lambda step: abs(step - milestone)) for milestone in asked}
    return report(
        title=f"{job.files.name}: {a_class}, {job.config.steps} steps, {job.config.method}",
        losses=state["losses"].tolist()[: job.config.steps] if "losses" in state else [],
        samples={step: samples[step] for step in shown},
        columns=[*[f"{a_class} {job.files.name}"] * len(SAMPLE_SEEDS), a_class],
    )


def _words(found: Mapping[str, Tensor], names: Mapping[str, Any]) -> dict[str, Tensor]:
    """S* from the embedding's file, [D] by the text encoder's name."""
    return {name: found[embedding_key(name, len(names))][0] for name in names}
