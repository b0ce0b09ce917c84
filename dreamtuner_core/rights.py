"""The rights of a subject: its owner and the allowed uses."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field, fields, replace

from .subject import Subject
from .texts import LONGEST_TEXT, checked_day, checked_text, shown


@dataclass(frozen=True)
class Rights:
    """Owner and allowed uses. until: the last day of the uses, YYYY-MM-DD. Empty means unknown."""

    owner: str = ""
    allowed_uses: str = ""
    until: str = ""

    def __post_init__(self) -> None:
        for item in fields(self):
            checked_text(item.name, getattr(self, item.name))
        checked_day("until", self.until)

    def ended(self, today: datetime.date) -> bool:
        """Whether the last day of the allowed uses is past."""
        return bool(self.until) and today > datetime.date.fromisoformat(self.until)

    def as_text(self, today: datetime.date) -> str:
        """The rights in words, one line each; empty if nothing is known."""
        owner, uses = (shown(text, LONGEST_TEXT) for text in (self.owner, self.allowed_uses))  # of a stranger's file
        parts = [
            owner and f"Owner: {owner}",
            uses and f"Allowed: {uses}",
            self.until and f"Until: {self.until}" + (" (this day is past)" if self.ended(today) else ""),
        ]
        return "\n".join(filter(None, parts))


@dataclass(frozen=True, eq=False)
class OwnedSubject(Subject):
    """A subject with rights. name: of its file, or empty."""

    name: str = ""
    rights: Rights = field(default_factory=Rights)
    caption_text: str = ""


def owned(subject: Subject, rights: Rights, name: str = "") -> OwnedSubject:
    """The same subject with these rights; a subject with rights already keeps its name."""
    if isinstance(subject, OwnedSubject):
        return replace(subject, rights=rights)
    plain = {item.name: getattr(subject, item.name) for item in fields(Subject)}
    return OwnedSubject(**plain, name=name, rights=rights)
