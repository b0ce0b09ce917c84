"""The rights of a subject in the pictures made with it."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

from comfy_execution.progress import get_progress_state

from ...saved_subject import OwnedSubject, Rights
from ...subject import Subject
from ..files import SUFFIX

METADATA = "dreamtuner_subjects"  # key in a picture's metadata
NO_RIGHTS = Rights()  # nothing is known of them


def tell_rights(subject: Subject, prompt: dict[str, Any] | None, extra_pnginfo: dict[str, Any] | None) -> None:
    """Write the subject's rights where the host's save nodes take a picture's metadata from.

    prompt: the graph as it was queued, to whose LoadSubject it is noted beside the inputs; extra_pnginfo: what the page
    sent along. Either may be None, for a caller may send neither.
    """
    if not isinstance(subject, OwnedSubject) or subject.rights == NO_RIGHTS:
        return
    told = {"subject": subject.name, **vars(subject.rights)}
    if isinstance(extra_pnginfo, dict):
        known = extra_pnginfo.get(METADATA)
        known = known if isinstance(known, list) else []
        extra_pnginfo[METADATA] = known if told in known else [*known, told]
    for node in prompt.values() if isinstance(prompt, dict) else ():
        if _loads(node, subject.name + SUFFIX):
            node["_meta"] = (node["_meta"] if isinstance(node.get("_meta"), dict) else {}) | {METADATA: told}


def _loads(node: Any, file: str) -> bool:
    """Whether that node of a graph, whatever a caller sent as one, is the Load Subject of that file."""
    if not isinstance(node, dict) or node.get("class_type") != "DreamTunerLoadSubject":
        return False
    inputs = node.get("inputs")
    return isinstance(inputs, dict) and inputs.get("file") == file


def tell_rights_of_run(subjects: Iterable[Subject]) -> None:
    """The same for the graph that is running, in which the host's cache may have answered for Load Subject."""
    prompt = get_progress_state().dynprompt.get_original_prompt()
    for subject in subjects:
        tell_rights(subject, prompt, None)


def today() -> datetime.date:
    return datetime.datetime.now().astimezone().date()
