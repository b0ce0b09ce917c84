"""Checks of the values of nodes and settings, because the page's widget does not limit a linked input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, fields
from numbers import Integral, Real
from typing import Any

from .texts import shown

LONGEST, LONGEST_LIST = 40, 120  # characters of a value, and of the list of choices, in an error


def setting(default: Any, tooltip: str = "", **limits: Any) -> Any:
    """A field of a settings dataclass, with its limits in the field's metadata. tooltip: of the node's input.

    limits: low and high (the range), options (the choices), step (of the page's widget).
    """
    return field(default=default, metadata={"tooltip": tooltip, **limits})


def check_settings(config: Any) -> None:
    """Raise ValueError, in one sentence, for a field with a wrong type or outside its limits."""
    for item in fields(config):
        value, limits = getattr(config, item.name), item.metadata
        if "options" in limits:
            check_choice(item.name, value, limits["options"])
        elif isinstance(item.default, bool):
            check_switch(item.name, value)
        elif "low" in limits:
            check_number(item.name, value, limits["low"], limits["high"], whole=isinstance(item.default, int))


def check_number(name: str, value: Any, low: float, high: float, whole: bool = False, usual: str = "") -> None:
    """Raise ValueError, in one sentence, if the value is not a number in low..high (NaN too), or not whole.

    usual: the end of the sentence, with a usual value.
    """
    kind = "a whole number" if whole else "a number"
    if not _is_number(value, whole):
        raise ValueError(f"{name} must be {kind}, but is {_quoted(value)}.")
    if not low <= value <= high:  # NaN too
        raise ValueError(f"{name} must be between {_text(low)} and {_text(high)}, but is {_text(value)}{usual}.")


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Raise ValueError, in one sentence, for a value that is not one of the choices."""
    if value not in known:
        raise ValueError(f"{name} must be one of {shown(', '.join(known), LONGEST_LIST)}, but is {_quoted(value)}.")


def check_switch(name: str, value: Any) -> None:
    """Raise ValueError, in one sentence, if the value is not a boolean."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, but is {_quoted(value)}.")


def _is_number(value: Any, whole: bool) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral if whole else Real)


def _text(number: Any) -> str:
    return str(number) if isinstance(number, Integral) else f"{number:g}"


def _quoted(value: Any) -> str:
    return shown(repr(value), LONGEST)
