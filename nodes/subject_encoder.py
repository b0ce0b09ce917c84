"""Load Subject Encoder and Apply Subject Encoder: the subject's rough appearance, from one trained file (Eq. 1)."""

from __future__ import annotations

from comfy_api.latest import io

from ..dreamtuner_core.host.apply import apply_encoder
from ..dreamtuner_core.host.encoder.load import ENCODERS, load_encoder
from .common import CATEGORY, SubjectEncoderSocket, SubjectSocket, percent_inputs
from .sockets import checked


class LoadSubjectEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamTunerLoadSubjectEncoder",
            display_name="Load Subject Encoder",
            category=CATEGORY,
            description="Loads a file that reads a subject's rough appearance from a picture: a subject encoder, or "
            "an IP-Adapter for SD1.5 or SDXL.",
            inputs=[
                io.Combo.Input(
                    "subject_encoder",
                    options=ENCODERS.files(),
                    tooltip="A .safetensors file in models/subject_encoders, made for the family of your checkpoint.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="The image tower that the file was trained with. Not needed if the file has its own.",
                ),
            ],
            outputs=[SubjectEncoderSocket.Output(display_name="subject_encoder")],
        )

    @classmethod
    def fingerprint_inputs(cls, subject_encoder, clip_vision=None) -> str:
        return ENCODERS.fingerprint(subject_encoder)

    @classmethod
    @checked
    def execute(cls, subject_encoder, clip_vision=None) -> io.NodeOutput:
        return io.NodeOutput(load_encoder(subject_encoder, clip_vision))


class ApplySubjectEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamTunerApplySubjectEncoder",
            display_name="Apply Subject Encoder",
            category=CATEGORY,
            description="Adds the subject's rough appearance in every transformer block of the model, before the "
            "text is read. Apply Self-Subject Attention refines it. For several subjects, use several in a row.",
            inputs=[
                io.Model.Input("model"),
                SubjectSocket.Input("subject", tooltip="From Encode Subject Image with a subject_encoder linked."),
                io.Float.Input(
                    "strength",
                    default=0.2,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="0.2 is usual. From 0.5 on, the text is hardly followed. 0 is off. An IP-Adapter needs 0.5 "
                    "to 1.",
                ),
                *percent_inputs(),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    @checked
    def execute(cls, model, subject, strength, start_percent, end_percent) -> io.NodeOutput:
        return io.NodeOutput(apply_encoder(model, subject, strength, start_percent, end_percent))
