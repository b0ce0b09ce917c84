"""Combine Subjects: several pictures of one subject."""

from __future__ import annotations

from comfy_api.latest import io

from ..dreamtuner_core.host.subject.combine import combine_subjects
from .common import CATEGORY, SubjectSocket
from .sockets import checked


class CombineSubjects(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamTunerCombineSubjects",
            display_name="Combine Subjects",
            category=CATEGORY,
            description="Makes one subject from several pictures of it, such as front, side and detail.",
            inputs=[
                SubjectSocket.Input("subject_1", tooltip="The main picture of the subject, such as its front."),
                SubjectSocket.Input("subject_2", tooltip="Another picture of the same subject, such as its side."),
                SubjectSocket.Input("subject_3", optional=True, tooltip="A third picture, such as a detail."),
                SubjectSocket.Input(
                    "subject_4", optional=True, tooltip="A fourth picture. For more, combine the result again."
                ),
            ],
            outputs=[SubjectSocket.Output(display_name="subject", tooltip="One subject with all the pictures.")],
        )

    @classmethod
    @checked
    def execute(cls, subject_1, subject_2, subject_3=None, subject_4=None) -> io.NodeOutput:
        given = [subject for subject in (subject_1, subject_2, subject_3, subject_4) if subject is not None]
        return io.NodeOutput(combine_subjects(given))
