"""Mentions of an embedding in prompts that the host would not recognise."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator

from comfy.sd1_clip import escape_important, token_weights, unescape_important

from ..texts import shown

KEY = "embedding:"
STARTS = re.compile(f"(?<=[ \n])(?={KEY})")  # where the host looks for one inside a text without parentheses
WORD = r"[^\s()]{0,80}"  # what is shown before and after a mention


def misread_mentions(name: str, prompts: Iterable[str]) -> Iterator[str]:
    """Mentions of embedding:<name> in prompts that the host would not recognise, safe to show.

    The host recognises `embedding:` in lower case at the beginning or after a space, a new line or a parenthesis; the
    name ends at the next space, without commas around it (comfy/sd1_clip.py), and must be spelt like the file.
    """
    spelt = re.escape(unicodedata.normalize("NFKC", name))
    # rexy, rex-like and rex.v2 are other names
    mention = rf"{WORD}embeddings?\s*:\W{{0,4}}{spelt}(?:\.safetensors)?(?![\w-]|\.\w){WORD}"
    meant = re.compile(mention, re.IGNORECASE)
    for prompt in prompts:
        if not meant.search(unicodedata.normalize("NFKC", prompt)):
            continue
        for piece in _pieces(prompt):
            read, rest = _read(piece)
            unread = rest if read in (name, f"{name}.safetensors") else piece
            yield from map(shown, meant.findall(unicodedata.normalize("NFKC", unread)))


def _pieces(prompt: str) -> Iterator[str]:
    """The parts of a prompt at whose beginning the host looks for an embedding."""
    try:
        texts = [unescape_important(text) for text, _ in token_weights(escape_important(prompt), 1.0)]
    except RecursionError:  # thousands of parentheses, which the host cannot read either
        texts = [prompt]
    for text in texts:
        yield from STARTS.split(text)


def _read(piece: str) -> tuple[str, str]:
    """The name that the host reads at the beginning of the piece, or none, and the rest."""
    if not piece.startswith(KEY):
        return "", piece
    name, *rest = [*piece.removeprefix(KEY).split(maxsplit=1), ""][:2]
    return posixpath.normpath(name.strip(",")), "".join(rest)
