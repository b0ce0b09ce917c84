"""The nodes: each is a schema and one call into the core. One module for each chapter of the method."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .combine_subjects import CombineSubjects
from .reference_guidance import ReferenceGuidance
from .saved_subject import LoadSubject, SaveSubject
from .score_pictures import ScorePictures
from .self_subject_attention import ApplySelfSubjectAttention
from .storyboard import DrawStoryboard
from .subject import EncodeSubjectImage, FindSubject
from .subject_encoder import ApplySubjectEncoder, LoadSubjectEncoder
from .subject_tuning import SubjectTuning


class DreamTunerExtension(ComfyExtension):
    """What the host loads from this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadSubjectEncoder,
            EncodeSubjectImage,
            FindSubject,
            ApplySubjectEncoder,
            ApplySelfSubjectAttention,
            ReferenceGuidance,
            SubjectTuning,
            SaveSubject,
            LoadSubject,
            ScorePictures,
            CombineSubjects,
            DrawStoryboard,
        ]
