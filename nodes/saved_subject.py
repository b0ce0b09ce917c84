"""Save Subject and Load Subject: a subject in one file, with its rights."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..dreamtuner_core.host.subject.rights import checked_rights, rights_notes, tell_rights, today
from ..dreamtuner_core.host.subject.saved import SUBJECTS, load_subject, save_subject
from .common import CATEGORY, SubjectEncoderSocket, SubjectSocket, noted, rights_inputs
from .sockets import checked
from .subject_tuning import TunedSubjectSocket


class SaveSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamTunerSaveSubject",
            display_name="Save Subject",
            category=CATEGORY,
            description="Saves a subject to one file in models/subjects: its picture and mask, their encodings, what "
            "Subject Tuning learned, and its rights.",
            is_output_node=True,
            inputs=[
                SubjectSocket.Input("subject"),
                io.String.Input(
                    "name", default="my_subject", tooltip="The file's name; if it is taken, a number is added."
                ),
                TunedSubjectSocket.Input(
                    "tuned_subject", optional=True, tooltip="The result of Subject Tuning for this subject."
                ),
                io.String.Input(
                    "caption_text",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="The caption in words, for people to read.",
                ),
                *rights_inputs(),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The file's name, as Load Subject lists it.")],
        )

    @classmethod
    @checked
    def execute(
        cls, subject, name, tuned_subject=None, caption_text="", owner="", allowed_uses="", until=""
    ) -> io.NodeOutput:
        rights = checked_rights(owner, allowed_uses, until)
        return io.NodeOutput(save_subject(subject, name, tuned_subject, rights, caption_text).name)


class LoadSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamTunerLoadSubject",
            display_name="Load Subject",
            category=CATEGORY,
            description="Loads a saved subject, with exactly the effect that it had. Its rights are written to the "
            "metadata of the pictures.",
            inputs=[
                io.Combo.Input("file", options=SUBJECTS.files(), tooltip="A file in models/subjects."),
                SubjectEncoderSocket.Input(
                    "subject_encoder",
                    optional=True,
                    tooltip="The subject encoder that the subject was encoded with, if it was.",
                ),
            ],
            outputs=[
                SubjectSocket.Output(display_name="subject"),
                TunedSubjectSocket.Output(display_name="tuned_subject", tooltip="If the subject was tuned."),
                io.String.Output(
                    display_name="phrase", tooltip="The words for the subject in a prompt: teapot embedding:name"
                ),
                io.String.Output(display_name="rights", tooltip="Owner, allowed uses, and their last day."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def fingerprint_inputs(cls, file, subject_encoder=None) -> str:
        return SUBJECTS.fingerprint(file)

    @classmethod
    @checked
    def execute(cls, file, subject_encoder=None) -> io.NodeOutput:
        subject, tuned = load_subject(file, subject_encoder)
        tell_rights(subject, cls.hidden.prompt, cls.hidden.extra_pnginfo)
        missing = ExecutionBlocker(f"Load Subject: '{file}' was not tuned; unlink its tuned_subject and phrase.")
        rights = subject.rights.as_text(today())
        phrase = tuned.phrase if tuned else missing
        return io.NodeOutput(subject, tuned or missing, phrase, rights, ui=noted(rights_notes(subject)))
