"""Rows of subject tuning: the node's own work on each subject, its files in a folder of the lab."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from lab.measure.rows import Made, Prompts
from lab.measure.studio import EMBEDDINGS, TUNING, Reference


@dataclass(frozen=True)
class Tuned:
    """Subject Tuning for so many steps, then self-subject attention at w_ref, where that is not 0.

    regular_from: "subject" as the paper has it; "class" is plain DreamBooth with prior, "both" half and half. named:
    whether the prompts say the subject's own word; without it they ask for its class. rate: the learning rate; 0 takes
    the node's own. encoder: a subject encoder's file, by which the regular pictures see the subject too; digest: of it.
    More steps of the same subject go on from fewer, as in the node.
    """

    steps: int = 200
    weight: float = 0.0
    negative: float = 1.0
    regular_pictures: int = 16
    regular_from: str = "subject"
    named: bool = True
    rate: float = 0.0
    encoder: Path | None = field(default=None, repr=False)
    digest: str = ""

    def __call__(self, model: Any, clip: Any, reference: Reference, prompts: Prompts) -> Made:
        import comfy.utils

        studio, case = reference.studio, reference.case
        redirect_folders()
        config = studio.core.tuning.config.TuningConfig(
            steps=self.steps,
            learning_rate=self.rate,
            regular_pictures=self.regular_pictures,
            regular_from=self.regular_from,
        )
        kind = f"{self.rate:g}_{self.regular_from}_{self.regular_pictures}{self.digest}"
        name = f"{case.kind}_{case.seed}_{case.number}_{kind}_{studio.weights}"
        subject = reference.encoded(self.encoder) if self.encoder else reference.subject()
        with mock.patch.object(comfy.utils, "PROGRESS_BAR_ENABLED", False):
            tuned = studio.core.host.tuning.tune.tune_subject(model, clip, studio.vae, subject, case.kind, name, config)
        said = [with_word(prompt, case.kind, tuned.subject.phrase) for prompt in prompts] if self.named else prompts
        if not self.weight:
            return tuned.model, tuned.clip, said
        apply = studio.core.host.apply.apply_subject
        return apply(tuned.model, subject, self.weight, negative_weight=self.negative), tuned.clip, said


def with_word(prompt: str, word: str, phrase: str) -> str:
    """The prompt with the tuned phrase for its class word, also where that is "two robots"."""
    return re.sub(rf"\b{word}(s?)\b", lambda found: word + found[1] + phrase.removeprefix(word), prompt, count=1)


@cache
def redirect_folders() -> None:
    """Empty folders for this process's host, so that nothing is written into anybody's ComfyUI."""
    import folder_paths

    shutil.rmtree(TUNING, ignore_errors=True)
    for kind, folder in (("loras", TUNING / "loras"), ("embeddings", EMBEDDINGS)):
        folder.mkdir(parents=True, exist_ok=True)
        folder_paths.folder_names_and_paths[kind] = ([str(folder)], {".safetensors"})
    folder_paths.set_user_directory(str(TUNING / "user"))
