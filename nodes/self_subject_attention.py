"""Apply Self-Subject Attention: the model looks at the subject while it draws (Eq. 3)."""

from __future__ import annotations

from comfy_api.latest import io

from ..dreamtuner_core.host.apply import apply_subject
from ..dreamtuner_core.host.settings import NEGATIVE_WEIGHT, REFERENCE_WEIGHT
from .common import CATEGORY, SubjectSocket, percent_inputs, schema
from .sockets import checked


class ApplySelfSubjectAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            search_aliases=["reference only", "character consistency", "identity", "self attention"],
            node_id="DreamTunerApplySelfSubjectAttention",
            display_name="Apply Self-Subject Attention",
            category=CATEGORY,
            description="Lets every self-attention of the model look at the subject as well. Nothing is trained, and "
            "the model itself does not change. For several subjects, use several in a row.",
            inputs=[
                io.Model.Input("model"),
                SubjectSocket.Input("subject"),
                io.Float.Input(
                    "reference_weight",
                    default=REFERENCE_WEIGHT,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strongly the model looks at the subject; 0 is off. Try 1.5 to 2 for a lost pattern. "
                    "With negative_weight 1, as in the paper: 3 for photographs, 2.5 for drawings.",
                ),
                *percent_inputs(),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="Where in the new picture the model may look at this subject; everywhere without a mask.",
                ),
                io.Float.Input(
                    "negative_weight",
                    default=NEGATIVE_WEIGHT,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="The share of reference_weight on the negative side of CFG. Lower it for more likeness: "
                    "CFG then pulls toward the subject as it pulls toward the text. 0 is the strongest. Raise it "
                    "where the subject looks pasted or burnt, as with a high CFG.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model,
        subject,
        reference_weight,
        start_percent,
        end_percent,
        region=None,
        negative_weight=NEGATIVE_WEIGHT,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            apply_subject(model, subject, reference_weight, start_percent, end_percent, region, negative_weight)
        )
