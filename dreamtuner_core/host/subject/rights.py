"""The rights of a subject in the pictures made with it."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

from comfy_execution.progress import get_progress_state

from ...rights import OwnedSubject, Rights
from ...subject import Subject
from ...texts import checked_text
from ..files import SUFFIX

METADATA = "dreamtuner_subjects"  # key in a picture's metadata
NO_RIGHTS = Rights()  # nothing is known of them


def tell_rights(subject: Subject, prompt: dict[str, Any] | None, extra_pnginfo: dict[str, Any] | None) -> None:
    """Write the subject's rights where the host's save nodes take a picture's metadata from.

    prompt: the graph as it was queued, where they are noted beside the inputs of the node that the subject comes from;
    extra_pnginfo: what the page sent along. Either may be None, for a caller may send neither.
    """
    if not isinstance(subject, OwnedSubject) or subject.rights == NO_RIGHTS:
        return
    told = {"subject": subject.name, **vars(subject.rights)}
    if isinstance(extra_pnginfo, dict):
        known = extra_pnginfo.get(METADATA)
        known = known if isinstance(known, list) else []
        extra_pnginfo[METADATA] = known if told in known else [*known, told]
    for node in prompt.values() if isinstance(prompt, dict) else ():
        if _is_source(node, subject):
            node["_meta"] = (node["_meta"] if isinstance(node.get("_meta"), dict) else {}) | {METADATA: told}


def _is_source(node: Any, subject: OwnedSubject) -> bool:
    """Whether that node of a graph, whatever a caller sent as one, loads or encodes that subject."""
    inputs = node.get("inputs") if isinstance(node, dict) else None
    if not isinstance(inputs, dict):
        return False
    if node.get("class_type") == "DreamTunerLoadSubject":
        return inputs.get("file") == subject.name + SUFFIX
    if subject.name or node.get("class_type") != "DreamTunerEncodeSubjectImage":
        return False
    given = {name: inputs.get(name, "") for name in vars(NO_RIGHTS)}  # a list is a link, whose text is not known here
    return all(isinstance(x, list) or str(x).strip() == vars(subject.rights)[name] for name, x in given.items())


def tell_rights_of_run(subjects: Iterable[Subject]) -> None:
    """The same for the graph that is running, in which the host's cache may have answered for the subject's node."""
    prompt = get_progress_state().dynprompt.get_original_prompt()
    for subject in subjects:
        tell_rights(subject, prompt, None)


def checked_rights(owner: str = "", allowed_uses: str = "", until: str = "") -> Rights:
    """As an artist wrote them. Raises ValueError, in one sentence, for what is no text or no day."""
    texts = {"owner": owner, "allowed_uses": allowed_uses, "until": until}
    return Rights(**{name: checked_text(name, text).strip() for name, text in texts.items()})


def rights_notes(subject: Subject) -> list[str]:
    """Keys of hints.NOTES: whether the allowed uses are over."""
    return ["ended"] if isinstance(subject, OwnedSubject) and subject.rights.ended(today()) else []


def today() -> datetime.date:
    return datetime.datetime.now().astimezone().date()
