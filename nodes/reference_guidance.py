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
            description="Some steps pull toward the subject, the others toward the text; the sampler's seed decides "
            "which. Needs Apply Self-Subject Attention, before or after it; without one it does nothing.",
            inputs=[
                io.Model.Input("model"),
                io.Float.Input(
                    "reference_scale",
                    default=1.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How far a step toward the subject goes: 1 is the effect of the subject alone, more goes "
                    "further. On the test model, more than 2 lost the text and gained nothing.",
                ),
                io.Float.Input(
                    "reference_probability",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The share of the steps that pull toward the subject; the others follow the text with the "
                    "sampler's CFG. The paper uses 0.9. A higher share follows the text less.",
                ),
                *advanced(
                    io.Float.Input(
                        "dt",
                        default=0.0,
                        min=0.0,
                        max=1000.0,
                        step=1.0,
                        tooltip="How much less noise the reference has on the positive side, in timesteps of 1000.",
                    ),
                    io.Float.Input(
                        "dt_uncond",
                        default=0.0,
                        min=0.0,
                        max=1000.0,
                        step=1.0,
                        tooltip="How much more noise the reference has on the negative side, in timesteps of 1000.",
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
