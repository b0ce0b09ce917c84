"""Subject Tuning: a few hundred steps on one picture, inside the graph (section 3.3)."""

from __future__ import annotations

from comfy_api.latest import io

from ..dreamtuner_core.host.tuning.job import tune_subject
from ..dreamtuner_core.tuning.config import METHODS, PRECISIONS, REGULAR_FROM, TuningConfig
from .common import CATEGORY, SubjectSocket, advanced, named_errors, schema

TunedSubjectSocket = io.Custom("DREAMTUNER_TUNED_SUBJECT")
DEFAULT = TuningConfig()


class SubjectTuning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            search_aliases=["dreambooth", "train lora", "fine-tune", "textual inversion"],
            node_id="DreamTunerSubjectTuning",
            display_name="Subject Tuning",
            category=CATEGORY,
            description="Learns the subject itself from its one picture, in minutes. Writes a LoRA and an embedding "
            "that every other graph can use, and goes on where it was when it is stopped and queued again.",
            is_experimental=True,
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint, with what is to be on it while it learns."),
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
                    tooltip="Of the LoRA and the embedding. In a prompt: the class word, then embedding:name.",
                ),
                io.Int.Input(
                    "steps",
                    default=DEFAULT.steps,
                    min=1,
                    max=100000,
                    tooltip="300 pleases, 800 is enough for most. More steps later go on from these.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Decides everything that chance decides here.",
                ),
                *_advanced(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="With the LoRA loaded, as Load LoRA loads it."),
                io.Clip.Output(display_name="clip", tooltip="With the LoRA loaded, as Load LoRA loads it."),
                TunedSubjectSocket.Output(display_name="tuned_subject"),
                io.Image.Output(display_name="report", tooltip="The loss, and what the model drew along the way."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, clip, vae, subject, class_word, name, steps, seed, **options) -> io.NodeOutput:
        with named_errors("Subject Tuning"):
            config = TuningConfig(steps=steps, seed=seed, **options)
            return io.NodeOutput(
                *tune_subject(model, clip, vae, subject, class_word, name, config, cls.hidden.unique_id)
            )


def _advanced() -> list[io.Input]:
    return advanced(
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default=DEFAULT.method,
            optional=True,
            tooltip="lora: small and quick. full: all layers, as in the paper; needs far more memory and disk.",
        ),
        io.Int.Input("rank", default=DEFAULT.rank, min=1, max=256, optional=True, tooltip="Size of the LoRA."),
        io.Float.Input(
            "learning_rate",
            default=DEFAULT.learning_rate,
            min=0.0,
            max=1.0,
            step=1e-7,
            round=False,
            optional=True,
            tooltip="Of the model and the text encoder. 0 takes the method's own.",
        ),
        io.Float.Input(
            "word_rate",
            default=DEFAULT.word_rate,
            min=0.0,
            max=1.0,
            step=1e-5,
            round=False,
            optional=True,
            tooltip="Learning rate of the new word.",
        ),
        io.Int.Input(
            "regular_pictures",
            default=DEFAULT.regular_pictures,
            min=0,
            max=1024,
            optional=True,
            tooltip="Pictures that resemble the subject, drawn first, so that the class keeps its meaning. Kept on "
            "disk for the next tuning.",
        ),
        io.Boolean.Input(
            "text_encoder", default=DEFAULT.text_encoder, optional=True, tooltip="Whether the text encoder learns too."
        ),
        io.Boolean.Input(
            "masked_loss",
            default=DEFAULT.masked_loss,
            optional=True,
            tooltip="Learn from the subject alone, and not from the white around it.",
        ),
        io.Float.Input(
            "min_snr",
            default=DEFAULT.min_snr,
            min=0.0,
            max=1000.0,
            step=0.5,
            optional=True,
            tooltip="Gamma of min-SNR weighting; 5 is usual, 0 is none.",
        ),
        io.Combo.Input(
            "precision",
            options=list(PRECISIONS),
            default=DEFAULT.precision,
            optional=True,
            tooltip="What the model computes in; auto is bf16 where the GPU knows it, and fp32 for full. "
            "What is learned is in fp32.",
        ),
        io.Boolean.Input(
            "gradient_checkpointing",
            default=DEFAULT.gradient_checkpointing,
            optional=True,
            tooltip="Needs much less memory, and a third more time. The result is the same.",
        ),
        io.Int.Input(
            "accumulation",
            default=DEFAULT.accumulation,
            min=1,
            max=64,
            optional=True,
            tooltip="Pairs of pictures to one step.",
        ),
        io.Int.Input(
            "checkpoint_interval",
            default=DEFAULT.checkpoint_interval,
            min=1,
            max=100000,
            optional=True,
            tooltip="Steps between two savings of the state, from which a killed tuning goes on.",
        ),
        io.Combo.Input(
            "regular_from",
            options=list(REGULAR_FROM),
            default=DEFAULT.regular_from,
            optional=True,
            tooltip="What the regular pictures show. subject: what resembles it, as in the paper. class: the class as "
            "the model draws it. both: half and half, which leaves the bare class more as it was.",
        ),
        io.Boolean.Input(
            "encoder_resblocks",
            default=DEFAULT.encoder_resblocks,
            optional=True,
            tooltip="Whether the subject encoder on the model learns too. The model must come through Apply Subject "
            "Encoder with this subject. Gives a subject encoder of the same name.",
        ),
    )
