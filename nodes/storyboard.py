"""Draw Storyboard: one picture for each line, with the same subjects from the first to the last."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

from ..dreamtuner_core.host.storyboard import LARGEST, SMALLEST, Storyboard, blank
from ..dreamtuner_core.storyboard import MOST_CFG, MOST_STEPS, MOST_WEIGHT, SEEDS, StoryboardConfig, story
from .common import CATEGORY, SubjectSocket, schema
from .sockets import checked

DEFAULT = StoryboardConfig()


class DrawStoryboard(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        side = {"min": SMALLEST, "max": LARGEST, "step": 8, "tooltip": "Of each picture, in pixels."}
        weight = {"min": 0.0, "max": MOST_WEIGHT, "step": 0.1}
        return schema(
            search_aliases=["story", "comic", "consistent character", "sequence"],
            node_id="DreamTunerStoryboard",
            display_name="Draw Storyboard",
            category=CATEGORY,
            description="Draws one picture for each line of a story. Each looks at the subject and at the picture "
            "before it. After a change, only the changed line and those that depend on it are drawn again.",
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint, with the LoRAs and other nodes that you draw with."),
                io.Clip.Input("clip", tooltip="Encodes the lines."),
                io.Vae.Input("vae", tooltip="The checkpoint's own VAE."),
                SubjectSocket.Input("subject", tooltip="Who the story is about, from Encode Subject Image."),
                io.Conditioning.Input("negative", tooltip="What no picture should show."),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="One line for each picture, 64 at most. With several subjects, a line may begin with the "
                    "names of those in it: hero, cat: on a roof.",
                ),
                io.String.Input(
                    "always",
                    default="",
                    multiline=True,
                    tooltip="Added to each line: the style, the subject's appearance.",
                ),
                io.Float.Input(
                    "first_weight",
                    default=DEFAULT.first_weight,
                    **weight,
                    tooltip="How strongly each picture looks at the subject; 0 is off.",
                ),
                io.Float.Input(
                    "previous_weight",
                    default=DEFAULT.previous_weight,
                    **weight,
                    tooltip="How strongly each picture looks at the subject in the picture before. At 0 the pictures "
                    "do not depend on each other.",
                ),
                io.Int.Input(
                    "seed",
                    default=DEFAULT.seed,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="The seed of the first picture. Another seed draws all of them again.",
                ),
                io.Combo.Input(
                    "seeds",
                    options=list(SEEDS),
                    default=DEFAULT.seeds,
                    tooltip="All lines share the seed, or it goes up by one with each line.",
                ),
                io.Int.Input(
                    "steps", default=DEFAULT.steps, min=1, max=MOST_STEPS, tooltip="Sampling steps of a picture."
                ),
                io.Float.Input(
                    "cfg", default=DEFAULT.cfg, min=0.0, max=MOST_CFG, step=0.1, round=0.01, tooltip="As in KSampler."
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default=DEFAULT.sampler_name,
                    tooltip="As in KSampler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default=DEFAULT.scheduler,
                    tooltip="As in KSampler.",
                ),
                io.Int.Input("width", default=512, **side),
                io.Int.Input("height", default=512, **side),
                io.Latent.Input("latent", optional=True, tooltip="Instead of width and height; one, not a batch."),
                *(
                    SubjectSocket.Input(f"subject_{i}", optional=True, tooltip="Another subject of the story.")
                    for i in (2, 3, 4)
                ),
                io.String.Input(
                    "names",
                    default="",
                    optional=True,
                    tooltip="Names of the subjects, in order, with commas: hero, cat. A line that begins with names "
                    "and a colon has only those subjects.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="pictures", tooltip="One for each line."),
                io.Image.Output(display_name="sheet", tooltip="All of them with their lines, on one page."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls, model, clip, vae, subject, negative, prompts, always, width, height, latent=None, names="", **more
    ) -> io.NodeOutput:
        others = [more.pop(name, None) for name in ("subject_2", "subject_3", "subject_4")]
        subjects = [subject, *(other for other in others if other is not None)]
        lines = story(prompts, always, names, len(subjects))
        latent = latent or blank(width, height)
        storyboard = Storyboard(model, clip, vae, subjects, negative, latent, lines, StoryboardConfig(**more))
        return io.NodeOutput(*storyboard.draw(cls.hidden.unique_id))
