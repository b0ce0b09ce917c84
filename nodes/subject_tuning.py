"""Subject Tuning: a few hundred steps on one picture, inside the graph (section 3.3)."""

from __future__ import annotations

import logging
from dataclasses import Field, fields
from typing import Any

from comfy_api.latest import io

from ..dreamtuner_core.host.mentions import misread_mentions
from ..dreamtuner_core.host.tuning.files import is_to_be_written_again
from ..dreamtuner_core.host.tuning.tune import tune_subject
from ..dreamtuner_core.tuning.config import TuningConfig
from .common import CATEGORY, SubjectSocket, advanced, schema, strings_of
from .sockets import checked

log = logging.getLogger(__name__)
ALWAYS_SHOWN = ("steps", "seed")
TunedSubjectSocket = io.Custom("DREAMTUNER_TUNED_SUBJECT")


class SubjectTuning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            search_aliases=["dreambooth", "train lora", "fine-tune", "textual inversion"],
            node_id="DreamTunerSubjectTuning",
            display_name="Subject Tuning",
            category=CATEGORY,
            description="Trains the model on the subject's one picture, in minutes. Saves a LoRA and an embedding "
            "that every other graph can use. If it was stopped, queue again and it goes on.",
            is_experimental=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="The checkpoint. LoRAs on it are needed again when the result is used."
                ),
                io.Clip.Input("clip", tooltip="The checkpoint's own CLIP."),
                io.Vae.Input("vae", tooltip="The checkpoint's own VAE."),
                SubjectSocket.Input("subject", tooltip="From Encode Subject Image, best with a mask and a caption."),
                io.String.Input(
                    "class_word",
                    default="",
                    tooltip="What the subject is, in one or two plain words: dog, teapot, backpack.",
                ),
                io.String.Input(
                    "name",
                    default="my_subject",
                    tooltip="Name of the LoRA and the embedding. In a prompt: the class word, then embedding:name.",
                ),
                *(_input(setting) for setting in fields(TuningConfig) if setting.name in ALWAYS_SHOWN),
                *advanced(*(_input(setting) for setting in fields(TuningConfig) if _is_advanced(setting))),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="With the LoRA loaded, as Load LoRA loads it."),
                io.Clip.Output(display_name="clip", tooltip="With the LoRA loaded, as Load LoRA loads it."),
                TunedSubjectSocket.Output(display_name="tuned_subject"),
                io.Image.Output(display_name="report", tooltip="The loss, and pictures drawn during the training."),
                io.String.Output(
                    display_name="phrase", tooltip="The words for the subject in a prompt: teapot embedding:name"
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def fingerprint_inputs(cls, name=None, steps=None, **_) -> bool:
        """Whether a file of a finished tuning was deleted, so that the node runs again. (Linked inputs are None.)"""
        return isinstance(name, str) and isinstance(steps, int) and is_to_be_written_again(name, steps)

    @classmethod
    @checked
    def execute(cls, model, clip, vae, subject, class_word, name, steps, seed, **options) -> io.NodeOutput:
        config = TuningConfig(steps=steps, seed=seed, **options)
        node_id = cls.hidden.unique_id
        tuned = tune_subject(model, clip, vae, subject, class_word, name, config, node_id)
        for mention in misread_mentions(tuned.subject.name, strings_of(cls.hidden.prompt)):
            log.warning(
                "DreamTuner: a prompt has '%s', which ComfyUI does not read as this subject; write "
                "'embedding:%s' with a space before and after it",
                mention,
                tuned.subject.name,
            )
        return io.NodeOutput(*tuned, tuned.subject.phrase)


def _is_advanced(setting: Field) -> bool:
    return bool(setting.metadata["tooltip"]) and setting.name not in ALWAYS_SHOWN


def _input(setting: Field) -> io.Input:
    """The input of one setting, with its own range and tooltip."""
    limits = setting.metadata
    given: dict[str, Any] = {"default": setting.default, "tooltip": limits["tooltip"]}
    given["optional"] = setting.name not in ALWAYS_SHOWN
    if "options" in limits:
        return io.Combo.Input(setting.name, options=list(limits["options"]), **given)
    if isinstance(setting.default, bool):
        return io.Boolean.Input(setting.name, **given)
    given |= {"min": limits["low"], "max": limits["high"]}
    if isinstance(setting.default, int):
        return io.Int.Input(setting.name, control_after_generate=False if setting.name == "seed" else None, **given)
    exact = {"round": False} if limits["step"] < 1e-3 else {}
    return io.Float.Input(setting.name, step=limits["step"], **exact, **given)
