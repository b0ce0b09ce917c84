"""Texts from outside (widgets, files): checked when they are read, and cleaned before they are shown."""

from __future__ import annotations

import datetime
import re
import unicodedata

LONGEST_TEXT = 4000  # characters
LONGEST_SHOWN = 80  # characters of a stranger's text in a message
LONGEST_NAME = 100  # bytes, as file systems count
LAYOUT = "\t\n\r"  # the control characters that a text of several lines may have
JOINERS = "\u200c\u200d"  # without a width, between letters
FORBIDDEN = set('/\\<>:"|?*,()[]{}')  # characters with a meaning in a path, on Windows or in a prompt
ENDINGS = (".safetensors", ".pt", ".bin")  # with one of these, `embedding:rex.pt` may be another file
ABSOLUTE = re.compile(r"""(["'])(?:/|[A-Za-z]:[/\\]).*?\1|(?<![\w.])(?:/|[A-Za-z]:[/\\])\S+""")  # a path
DEVICES = {
    "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$",
    *(f"{port}{i}" for port in ("COM", "LPT") for i in (*range(10), "¹", "²", "³")),
}  # fmt: skip


def shown(value: object, longest: int = LONGEST_SHOWN) -> str:
    """Any value as one line of text that is safe to show in a terminal or on a page.

    Unprintable characters (control characters, lone surrogates, direction marks) become U+FFFD, runs of spaces one
    space, and the text is cut to `longest` characters. What joins letters, in Persian and emoji, stays.
    """
    text = str(value[: 4 * longest] if isinstance(value, str) else value)[: 4 * longest]
    text = " ".join(text.split())
    text = "".join(c if c.isprintable() or c in JOINERS else "\ufffd" for c in text)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def reason(error: BaseException, longest: int = LONGEST_SHOWN) -> str:
    """Why something failed, by the system's or a library's own words, without absolute paths, safe to show."""
    said = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return shown(ABSOLUTE.sub("...", said), longest)


def checked_text(what: str, text: object, longest: int = LONGEST_TEXT) -> str:
    """Return the text. Raises ValueError if it is not a text, too long, or has control characters."""
    if not isinstance(text, str):
        raise ValueError(f"{what} must be a text, but is a {type(text).__name__}; give it as a text.")
    if len(text) > longest:
        raise ValueError(f"{what} must have at most {longest} characters, but has {len(text)}; shorten it.")
    odd = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in LAYOUT), None)
    if odd is not None:
        raise ValueError(f"{what} must be plain text, but has the character U+{ord(odd):04X}; type it again.")
    return text


def checked_name(name: str, what: str = "name") -> str:
    """Return the name of a new file, in Unicode's NFC. Raises ValueError, in one sentence, if it is not a plain name.

    Letters of any language are allowed. Spaces are not, because `embedding:<name>` ends at a space in a prompt.
    """
    name = unicodedata.normalize("NFC", checked_text(f"the {what}", name).strip())
    why = ""
    if not name:
        why = "is empty"
    elif set(name) & FORBIDDEN:
        why = f"must not contain {' '.join(sorted(set(name) & FORBIDDEN))}"
    elif any(c.isspace() for c in name) or not name.isprintable():
        why = "must not contain spaces or invisible characters"
    elif name.startswith(".") or name.endswith("."):
        why = "must not begin or end with a dot"
    elif name.split(".")[0].upper() in DEVICES:
        why = "is the name of a device on Windows"
    elif name.lower().endswith(ENDINGS):
        why = "must be without the ending of a file"
    elif len(name.encode()) > LONGEST_NAME:
        why = f"is longer than {LONGEST_NAME} bytes"
    if why:
        raise ValueError(f"the {what} '{shown(name, 40)}' {why}; use a plain name, such as 'rex' or 'blue_teapot'.")
    return name


def checked_class_word(class_word: str) -> str:
    """Return the class word without spaces around it. Raises ValueError if it is empty or not plain words."""
    word = " ".join(checked_text("the class word", class_word).split())
    if not word:
        raise ValueError("the class word is empty; write what the subject is, such as 'dog', 'teapot' or 'backpack'.")
    if "embedding:" in word.lower() or not word.isprintable():
        raise ValueError(f"the class word must be plain words, such as 'dog', but is '{shown(word)}'.")
    return word


def checked_day(what: str, day: str) -> str:
    """Return the day. Raises ValueError unless it is written as 2030-12-31, or empty."""
    try:
        known = datetime.date.fromisoformat(day).isoformat() == day if day else True  # newer Pythons read 20301231 too
    except ValueError:
        known = False
    if not known:
        raise ValueError(
            f"{what} must be a day written like 2030-12-31, or empty, but is '{shown(day, 40)}'; change it."
        )
    return day
