"""Several pictures of one subject, as one subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from ...rights import OwnedSubject, Rights, owned
from ...subject import Subject
from ..encoder.load import SubjectEncoding, joined


def combine_subjects(subjects: Sequence[Subject]) -> Subject:
    """One subject with the images of all. The first image is the main one: tuning learns from it.

    Raises ValueError, in one sentence, for subjects from different checkpoints or encoders.
    """
    encoding = _joined_encoding([subject.encoding for subject in subjects])
    first, *others = (picture for subject in subjects for picture in subject.pictures())
    for number, other in enumerate(others, start=2):
        _check_fits(first, other, number)
    whole = replace(_owned(first, subjects), views=tuple(others))
    return whole.encoded(encoding)


def _check_fits(first: Subject, other: Subject, number: int) -> None:
    for what, of in (("a latent of {} channels", _channels), ("a caption of {} features a token", _text_width)):
        one, another = of(first), of(other)
        if None not in (one, another) and one != another:
            raise ValueError(
                f"picture {number} has {what.format(another)}, but picture 1 {what.format(one)}; encode all of "
                "them with the same checkpoint."
            )


def _channels(subject: Subject) -> int:
    return subject.latent.shape[1]


def _text_width(subject: Subject) -> int | None:
    return None if subject.caption is None else subject.caption[0][0].shape[-1]


def _joined_encoding(encodings: Sequence[Any]) -> SubjectEncoding | None:
    made = [encoding for encoding in encodings if encoding is not None]
    if not made:
        return None
    if len(made) < len(encodings) or any(e.encoder.model is not made[0].encoder.model for e in made):
        raise ValueError(
            f"{len(made)} of {len(encodings)} subjects were read by a subject encoder, or by different ones; link the "
            "same subject encoder to all of them, or to none."
        )
    return joined(made)


def _owned(first: Subject, subjects: Sequence[Subject]) -> Subject:
    """The main image with the rights of all subjects: every owner, every limit, the earliest last day."""
    known = [subject for subject in subjects if isinstance(subject, OwnedSubject)]
    if not known:
        return first
    told = {item.name: list(dict.fromkeys(getattr(s.rights, item.name) for s in known)) for item in fields(Rights)}
    texts = {name: "; ".join(filter(None, told[name])) for name in ("owner", "allowed_uses")}
    rights = Rights(**texts, until=min(filter(None, told["until"]), default=""))
    return owned(first, rights, known[0].name)
