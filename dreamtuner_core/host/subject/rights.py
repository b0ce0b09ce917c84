"""A subject's rights in the metadata of the images made with it."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

from comfy_execution.progress import get_progress_state

from ...rights import OwnedSubject, Rights
from ...subject import Subject
from ...texts import checked_text
from ..files import SUFFIX
from ..metadata import note_on_node, note_with_pictures

METADATA = "dreamtuner_subjects"  # key in a picture's metadata
NO_RIGHTS = Rights()  # nothing is known of them


def tell_rights(subject: Subject, prompt: dict[str, Any] | None, extra_pnginfo: dict[str, Any] | None) -> None:
    """Add the subject's rights to the metadata that the host's save nodes write into images.

    prompt: the queued graph; the rights are added beside the inputs of the subject's own node. extra_pnginfo: the
    page's extra data. Either may be None, because API callers may send neither.
    """
    if not isinstance(subject, OwnedSubject) or subject.rights == NO_RIGHTS:
        return
    told = {"subject": subject.name, **vars(subject.rights)}
    note_with_pictures(extra_pnginfo, METADATA, [told])
    for node in prompt.values() if isinstance(prompt, dict) else ():
        if _is_source(node, subject):
            note_on_node(node, METADATA, told)


def _is_source(node: Any, subject: OwnedSubject) -> bool:
    """Whether this node of the graph loads or encodes that subject. Callers may send anything as a node."""
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
    """Rights from a node's inputs. Raises ValueError, in one sentence, for an invalid text or date."""
    texts = {"owner": owner, "allowed_uses": allowed_uses, "until": until}
    return Rights(**{name: checked_text(name, text).strip() for name, text in texts.items()})


def rights_notes(subject: Subject) -> list[str]:
    """Keys of hints.NOTES: a note if the last day of the allowed uses is past."""
    return ["ended"] if isinstance(subject, OwnedSubject) and subject.rights.ended(today()) else []


def today() -> datetime.date:
    return datetime.datetime.now().astimezone().date()
