"""Reference Guidance: steps toward the subject and steps toward the text take turns (Eq. 4-6)."""

from __future__ import annotations

from comfy_api.latest import io

from ..dreamtuner_core.guidance import Guidance
from ..dreamtuner_core.host.apply import apply_guidance
from .common import CATEGORY, advanced, schema
from .sockets import checked


class ReferenceGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            search_aliases=["reference", "cfg", "likeness"],
            node_id="DreamTunerReferenceGuidance",
            display_name="Reference Guidance",
            category=CATEGORY,
            description="Makes some steps pull toward the subject and the others toward the text, drawn from the "
            "sampler's seed. Needs Apply Self-Subject Attention, before or after it; without one it does nothing.",
            inputs=[
                io.Model.Input("model"),
                io.Float.Input(
                    "reference_scale",
                    default=1.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How far a step toward the subject goes: 1 is what looking at it gives, more is further. "
                    "On the test model, more than 2 lost the text and won nothing.",
                ),
                io.Float.Input(
                    "reference_probability",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How many of the steps pull toward the subject; the others follow the text at the "
                    "sampler's own CFG. 0.9 is the paper's; the more, the less of the text is followed.",
                ),
                *advanced(
                    io.Float.Input(
                        "dt",
                        default=0.0,
                        min=0.0,
                        max=1000.0,
                        step=1.0,
                        tooltip="How much cleaner, in timesteps of 1000, the reference is on the wanted side.",
                    ),
                    io.Float.Input(
                        "dt_uncond",
                        default=0.0,
                        min=0.0,
                        max=1000.0,
                        step=1.0,
                        tooltip="How much noisier, in timesteps of 1000, the reference is on the unwanted side.",
                    ),
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    @checked
    def execute(cls, model, reference_scale, reference_probability, dt, dt_uncond) -> io.NodeOutput:
        guidance = Guidance(reference_scale, reference_probability, dt, dt_uncond)
        return io.NodeOutput(apply_guidance(model, guidance))
