"""Find Subject and Encode Subject Image: one picture becomes a subject."""

from __future__ import annotations

from comfy_api.latest import io

from ..dreamtuner_core.host.subject.encode import AUTO, FIND, LARGEST, LIGHT, MARKS, MEND, WHEN_NO_MASK, encode_subject
from ..dreamtuner_core.host.subject.find import KEEP, MOST_GROWTH, find_and_show
from ..dreamtuner_core.host.subject.rights import NO_RIGHTS, checked_rights, rights_notes
from ..dreamtuner_core.picture.find_subject import THRESHOLD
from ..dreamtuner_core.rights import owned
from .common import CATEGORY, SubjectEncoderSocket, SubjectSocket, advanced, rights_inputs, shown
from .sockets import checked


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
                    tooltip="Where the subject is. LoadImage's mask can be linked directly: of a cut-out picture, "
                    "painted, or empty. Without a mask the subject is found.",
                ),
                io.Conditioning.Input(
                    "caption", optional=True, tooltip="What the picture shows, encoded by the checkpoint's own CLIP."
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="With no caption, the empty text is encoded with this CLIP."
                ),
                io.Combo.Input(
                    "mask_marks",
                    options=list(MARKS),
                    default="auto",
                    optional=True,
                    tooltip="What the mask's white marks. Auto looks at the mask's corners and middle, and at the "
                    "picture if they are unclear. The preview shows the result.",
                ),
                io.Int.Input(
                    "resolution",
                    default=AUTO,
                    min=AUTO,
                    max=LARGEST,
                    step=8,
                    optional=True,
                    tooltip="Side of the square in which the subject is framed: the size the checkpoint was trained "
                    "on. 0 is auto, by the caption or clip: 512 for SD1.x, 768 for SD2.x, 1024 for SDXL.",
                ),
                io.Int.Input(
                    "noise_seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    optional=True,
                    control_after_generate=False,
                    tooltip="Seed of the noise added to the reference; independent of the sampler's seed.",
                ),
                SubjectEncoderSocket.Input(
                    "subject_encoder",
                    optional=True,
                    tooltip="From Load Subject Encoder. Reads the picture once, for Apply Subject Encoder.",
                ),
                io.Combo.Input(
                    "find_subject",
                    options=list(FIND),
                    default=WHEN_NO_MASK,
                    optional=True,
                    tooltip="Whether the subject is found if no mask is linked, or only LoadImage's empty one. With "
                    "never, the whole picture is used, and its background will show in new pictures.",
                ),
                io.Combo.Input(
                    "light",
                    options=list(LIGHT),
                    default=MEND,
                    optional=True,
                    tooltip="Auto brightens a dark subject, deepens a pale one and removes a tint of the light. "
                    "A good picture does not change.",
                ),
                *advanced(*rights_inputs(multiline=False)),
            ],
            outputs=[
                SubjectSocket.Output(display_name="subject"),
                io.Image.Output(
                    display_name="preview",
                    tooltip="The picture with the subject's outline, the subject as framed, and what is left out.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        image,
        vae,
        mask=None,
        caption=None,
        clip=None,
        find_subject=WHEN_NO_MASK,
        light=MEND,
        owner="",
        allowed_uses="",
        until="",
        **options,
    ) -> io.NodeOutput:
        rights = checked_rights(owner, allowed_uses, until)
        made = encode_subject(image, vae, mask, caption, clip, find_subject=find_subject, light=light, **options)
        subject = made.subject if rights == NO_RIGHTS else owned(made.subject, rights)
        return io.NodeOutput(subject, made.preview, ui=shown(made.preview, rights_notes(subject) + made.notes))


class FindSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamTunerFindSubject",
            display_name="Find Subject",
            category=CATEGORY,
            description="Finds what stands out in a picture, as a mask. Encode Subject Image does this by itself if "
            "it has no mask; this node has settings for it.",
            inputs=[
                io.Image.Input("image", tooltip="One picture, or a batch."),
                io.Float.Input(
                    "threshold",
                    default=THRESHOLD,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much a pixel must stand out. A lower value includes more.",
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-MOST_GROWTH,
                    max=MOST_GROWTH,
                    tooltip="Pixels by which the mask grows; below 0 it shrinks.",
                ),
                io.Combo.Input(
                    "keep",
                    options=list(KEEP),
                    default="all",
                    tooltip="All that stands out, or only the largest connected area.",
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="1 is the subject."),
                io.Image.Output(
                    display_name="preview", tooltip="The picture with the subject's outline, and what is left out."
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls, image, threshold, grow, keep) -> io.NodeOutput:
        found = find_and_show(image, threshold, grow, keep)
        return io.NodeOutput(found.mask, found.preview, ui=shown(found.preview, found.notes))
