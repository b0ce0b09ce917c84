"""Score Pictures: the quality gate."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..dreamtuner_core.host.scoring.folder import tower_folders
from ..dreamtuner_core.host.scoring.score import Towers, score_pictures, tell_figures
from ..dreamtuner_core.ranges import check_choice, check_number
from ..dreamtuner_core.scoring.scores import Limits
from ..dreamtuner_core.texts import checked_text
from .common import CATEGORY, SubjectSocket
from .sockets import checked

ON_FAIL = PASS_THE_BEST, STOP = ("pass the best", "stop")
MOST_KEPT = 4096
NO_FOLDER = "none"


class ScorePictures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamTunerScorePictures",
            display_name="Score Pictures",
            category=CATEGORY,
            description="Measures how well each picture shows the subject, ranks them, and passes on the best.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures to choose from, in one batch."),
                SubjectSocket.Input("subject", tooltip="The subject that they should show."),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Measures likeness: DINOv2 or CLIP, from Load CLIP Vision. Without it the checkpoint's own "
                    "keys rank the pictures, but have no threshold.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Measures text match. Must be the pair of clip_vision: SDXL's CLIP with CLIP-ViT-bigG, "
                    "SD2.x's CLIP with CLIP-ViT-H.",
                ),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What the pictures should show, for the text match.",
                ),
                io.Model.Input(
                    "model", optional=True, tooltip="The checkpoint that drew the pictures; used without clip_vision."
                ),
                io.Vae.Input("vae", optional=True, tooltip="That checkpoint's VAE."),
                io.Int.Input(
                    "keep",
                    default=1,
                    min=1,
                    max=MOST_KEPT,
                    optional=True,
                    tooltip="How many pictures to output as best.",
                ),
                _threshold(
                    "min_likeness",
                    "The lowest likeness that passes, a cosine: about 0.6 with DINOv2, 0.8 with CLIP; 0 is off.",
                ),
                _threshold("min_text", "The lowest text match that passes, a cosine: about 0.25; 0 is off."),
                _threshold("min_sharpness", "The lowest sharpness that passes; 1 is the reference's, 0 is off."),
                io.Combo.Input(
                    "on_fail",
                    options=list(ON_FAIL),
                    default=PASS_THE_BEST,
                    optional=True,
                    tooltip="If too few pass: fill up with the best of the rest, or output only those that passed, and "
                    "stop if none did.",
                ),
                io.Combo.Input(
                    "tower_folder",
                    options=[NO_FOLDER, *tower_folders()],
                    default=NO_FOLDER,
                    optional=True,
                    tooltip="Instead of clip_vision: a folder of transformers in models/clip_vision with a CLIP or "
                    "DINO. A CLIP measures the text match too, without clip.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="best", tooltip="The best pictures, best first."),
                io.Image.Output(display_name="accepted", tooltip="All that passed, best first."),
                io.Image.Output(display_name="rejected", tooltip="All that failed, best first."),
                io.Image.Output(
                    display_name="sheet", tooltip="All pictures, best first: a tick passed, a cross failed."
                ),
                io.String.Output(display_name="scores", tooltip="The figures, as JSON."),
                io.Boolean.Output(display_name="passed", tooltip="Whether every picture in best passed."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    @checked
    def execute(
        cls,
        images,
        subject,
        clip_vision=None,
        clip=None,
        text="",
        model=None,
        vae=None,
        keep=1,
        min_likeness=0.0,
        min_text=0.0,
        min_sharpness=0.0,
        on_fail=PASS_THE_BEST,
        tower_folder=NO_FOLDER,
    ) -> io.NodeOutput:
        check_number("keep", keep, 1, MOST_KEPT, whole=True)
        check_choice("on_fail", on_fail, ON_FAIL)
        checked_text("text", text)
        checked_text("tower_folder", tower_folder)
        limits = Limits(min_likeness, min_text, min_sharpness)
        folder = "" if tower_folder == NO_FOLDER else tower_folder
        gate = score_pictures(images, subject, Towers(clip_vision, clip, text, model, vae, folder), limits)
        best = (gate.order if on_fail == PASS_THE_BEST else gate.accepted)[:keep]
        tell_figures(gate, best, cls.hidden.prompt, cls.hidden.unique_id, cls.hidden.extra_pnginfo)
        return io.NodeOutput(
            images[best] if best else ExecutionBlocker(f"Score Pictures: none of {len(images)} pictures passed."),
            *(images[some] if some else ExecutionBlocker(None) for some in (gate.accepted, gate.rejected)),
            gate.sheet(images, subject.picture[0]),
            gate.as_json(),
            bool(best) and set(best) <= set(gate.accepted),
        )


def _threshold(name: str, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=0.0, min=0.0, max=1.0, step=0.01, optional=True, tooltip=tooltip)
