"""Subject tuning in the host (section 3.3), from the inputs to the files and to the node's outputs.

    job -> is it done already? -> pairs -> training -> files -> result

Each part can be stopped and resumed.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ...subject import Subject
from ...tuning.config import TuningConfig
from ..memory import kept_features
from .files import steps_of
from .job import Job
from .pairs import make_pairs
from .result import Tuned, result
from .train import Training


@torch.inference_mode()  # as in a node, for every caller; the training leaves it
def tune_subject(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: Any,
    subject: Subject,
    class_word: str,
    name: str,
    config: TuningConfig,
    node_id: str | None = None,
) -> Tuned:
    """Tune, resume, or load a finished tuning. Raises ValueError, in one sentence, for invalid inputs.

    Unchanged settings do not train again; more steps resume from the end of the existing tuning.
    """
    job = Job(
        model=model,
        clip=clip,
        vae=vae,
        subject=subject,
        class_word=class_word,
        name=name,
        config=config,
        node_id=node_id,
    )
    with job.files.locked():
        job.files.check(job.key)
        if not is_done(job):
            train(job)
        return result(job)


def is_done(job: Job) -> bool:
    """Whether the files exist, with all steps. Raises ValueError if they have more steps than requested."""
    files, wanted = job.files, job.config.steps
    learned = max(steps_of(path) for path in (files.lora, files.state, files.spare))
    if steps_of(files.lora) == wanted and all(path.exists() for path in files.result):
        return True
    if learned > wanted:
        raise ValueError(
            f"'{files.name}' has been trained for {learned} steps already, but steps is {wanted}; use another name, or "
            f"set steps to {learned} or more."
        )
    return False


def train(job: Job) -> None:
    """Train the missing steps, and write the files. If it is stopped, what was learned is saved.

    Raises ValueError, in one sentence, if the memory is not enough.
    """
    try:
        pairs = make_pairs(job)
        kept_features(job.model).model.clear()  # training needs the memory more
        with Training(job, pairs) as training:
            try:
                training.run()
            except BaseException as error:
                line = training.keep()
                if line and isinstance(error, comfy.model_management.InterruptProcessingException):
                    job.progress.say(line)
                raise
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        comfy.model_management.unload_all_models()  # as the host does when it sees this error
        raise ValueError(_out_of_memory(job)) from error
    job.progress.say(f"done: {job.files.words()}")


def _out_of_memory(job: Job) -> str:
    config, (height, width) = job.config, job.subject.picture.shape[1:3]
    ways = [
        "" if config.gradient_checkpointing else "turn gradient_checkpointing on",
        "set method to lora" if config.method == "full" else "",
        "turn text_encoder off" if config.text_encoder else "",
        "turn encoder_resblocks off" if config.encoder_resblocks else "",
        "set precision to bf16" if config.precision == "fp32" and job.device.type == "cuda" else "",
        "lower the rank" if config.rank > 8 and config.method == "lora" else "",
        "encode the subject at a smaller resolution",
    ]
    return f"there is not enough memory to tune at {width}x{height}; {', or '.join(filter(None, ways))}."
