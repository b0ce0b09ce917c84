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
        known = extra_pnginfo.setdefault(METADATA, [])
        if told not in known:
            known.append(told)
    for node in (prompt or {}).values():
        if node.get("class_type") == "DreamTunerLoadSubject" and node["inputs"].get("file") == subject.name + SUFFIX:
            node.setdefault("_meta", {})[METADATA] = told


def tell_rights_of_run(subjects: Iterable[Subject]) -> None:
    """The same for the graph that is running, in which the host's cache may have answered for Load Subject."""
    prompt = get_progress_state().dynprompt.get_original_prompt()
    for subject in subjects:
        tell_rights(subject, prompt, None)


def today() -> datetime.date:
    return datetime.datetime.now().astimezone().date()
