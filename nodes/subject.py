"""Encode Subject Image: one picture becomes a subject."""

from __future__ import annotations

from comfy_api.latest import io

from ..dreamtuner_core.host.subject.encode import encode_subject
from .common import CATEGORY, SubjectEncoderSocket, SubjectSocket, named_errors


class EncodeSubjectImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamTunerEncodeSubjectImage",
            display_name="Encode Subject Image",
            category=CATEGORY,
            description="Turns one picture into a subject that a model can look at while it draws.",
            inputs=[
                io.Image.Input("image", tooltip="One picture of the subject."),
                io.Vae.Input("vae", tooltip="The VAE of the checkpoint that will draw."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the subject is. LoadImage's mask of a cut-out picture works as it is. Without one "
                    "the whole picture counts, and its background will show in what is made.",
                ),
                io.Conditioning.Input(
                    "caption", optional=True, tooltip="What the picture shows, by the checkpoint's own CLIP."
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="With no caption, the empty text is encoded with this CLIP."
                ),
                io.Combo.Input(
                    "mask_marks",
                    options=["auto", "subject", "background"],
                    default="auto",
                    optional=True,
                    tooltip="What the mask's white marks. Auto takes a mask that covers most of the picture's border "
                    "for the background. The preview shows the outcome.",
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=2048,
                    step=8,
                    optional=True,
                    tooltip="Side of the square in which the subject is framed: what the checkpoint was trained on "
                    "(512 for SD1.x, 768 for SD2.x, 1024 for SDXL).",
                ),
                io.Int.Input(
                    "noise_seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    optional=True,
                    control_after_generate=False,
                    tooltip="Seed of the noise put on the reference; apart from the sampler's seed.",
                ),
                SubjectEncoderSocket.Input(
                    "subject_encoder",
                    optional=True,
                    tooltip="Reads the picture for Apply Subject Encoder, once; from Load Subject Encoder.",
                ),
            ],
            outputs=[
                SubjectSocket.Output(display_name="subject"),
                io.Image.Output(display_name="preview", tooltip="What the method sees; red is masked out."),
            ],
        )

    @classmethod
    def execute(cls, image, vae, mask=None, caption=None, clip=None, **options) -> io.NodeOutput:
        with named_errors("Encode Subject Image"):
            return io.NodeOutput(*encode_subject(image, vae, mask, caption, clip, **options))
