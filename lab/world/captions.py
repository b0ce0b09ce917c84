"""Captions: "a robot, on a beach", "an orange robot with its arms up, on grass", "two robots, on snow"."""

import re

from .kinds import KINDS
from .palette import COLOURS
from .scenes import SCENES


def caption_of(kind: str, scene: str, colour: str = "", pose: str = "", count: int = 1) -> str:
    """The caption of one or two (`count`) individuals of a kind; colour and pose where they are given."""
    if count == 1:
        words = f"{colour} {kind}".strip()
        subject = f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    else:
        subject = f"two {colour} {kind}s".replace("  ", " ")
        pose = pose.replace("its", "their")
    return f"{subject} {pose}".strip() + f", on {scene}"


def all_captions_words() -> set[str]:
    """Every word that a caption can have."""
    phrases = ["a an two on", *COLOURS, *SCENES]
    for kind in KINDS.values():
        phrases += [kind.word, f"{kind.word}s", *kind.poses, *(pose.replace("its", "their") for pose in kind.poses)]
    return set(re.findall(r"\w+", " ".join(phrases)))
