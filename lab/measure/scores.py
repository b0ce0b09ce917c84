"""The figures of one picture, from what the reader sees in it.

kept: the share of the individual's attributes that are there, chance taken out: 0 what true pictures of others of its
kind read, 1 what true pictures of itself read; all together and by group, letters by themselves too.
text: the share of what the text asked for that is there (kind, scene, number; pose and colour where they were named).
A colour that is not the individual's own stands by itself (recolour): obeying it and keeping the subject are at odds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lab.measure.cast import REFERENCE_SCENE, WHITE, Ask, Case
from lab.measure.reader import COUNT, GRID, KIND, POSE, SCENE, Reading
from lab.measure.studio import as_floats
from lab.measure.teach import Confusion, frequency, right, title
from lab.world import GROUPS, KINDS, SCENES, Attribute

ALL, LETTERS = "kept", "letters"
PARTS = (*GROUPS, LETTERS)
READABLE = 0.3  # how much better than chance the reader must be at an attribute for it to count
TRUE_PLACES = range(100, 116)  # seeds of where the subject might as well stand

Scores = dict[str, float]


def kept(case: Case, ask: Ask, answers: Mapping[str, str], confusion: Confusion) -> Scores:
    """All and by group. Not counted: the colour where the text names it, and what the reader cannot read."""
    kind, individual = KINDS[case.kind], case.individual
    counted = [a for a in kind.attributes if not (ask.colour and a.name == kind.main_colour)]
    found: dict[str, list[float]] = {}
    for attribute in counted:
        value, question = individual[attribute.name], title(kind.word, attribute.name)
        by_chance, reached = frequency(confusion, question, value), right(confusion, question)
        if reached - by_chance < READABLE:
            continue
        gained = float(answers[attribute.name] == value) - by_chance
        for name in (ALL, *_parts(attribute)):
            sums = found.setdefault(name, [0.0, 0.0])
            sums[0] += gained
            sums[1] += reached - by_chance
    return {name: gained / span for name, (gained, span) in found.items()}


def _parts(attribute: Attribute) -> Sequence[str]:
    return (attribute.group, LETTERS) if attribute.name.startswith("letter") else (attribute.group,)


def text(case: Case, ask: Ask, answers: Mapping[str, str]) -> Scores:
    """Each thing that was asked for, 0 or 1, and the mean."""
    main = KINDS[case.kind].main_colour
    asked = {
        KIND: answers[KIND] == case.kind,
        SCENE: answers[SCENE] == ask.scene,
        COUNT: answers[COUNT] == str(ask.number),
    }
    if ask.pose:
        asked[POSE] = answers[POSE] == ask.pose
    if ask.colour == case.individual.colour:
        asked["colour"] = answers[main] == ask.colour
    scores = {name: float(obeyed) for name, obeyed in asked.items()}
    scores["text"] = fmean(scores.values())
    if ask.colour and ask.colour != case.individual.colour:
        scores["recolour"] = float(answers[main] == ask.colour)
    return scores


def surroundings(case: Case, reading: Reading, row: int) -> Scores:
    """bleed: share of the background that looks like the reference's, or like the white behind the cut-out. leak: 1
    where the subject stands as in the reference, 0 no nearer to that than by chance. size: its side, 1 as in true
    pictures."""
    around, names = reading.around[row], list(SCENES)
    subject = reading.subject[row] > 0.5
    own, places = _places(case)
    by_chance = fmean(overlap(own, place) for place in places)
    usual = fmean(float(place.float().mean()) ** 0.5 for place in places)
    return {
        "bleed": float(around[names.index(REFERENCE_SCENE)] + around[names.index(WHITE)]),
        "leak": (overlap(subject, own) - by_chance) / (1 - by_chance),
        "size": float(subject.float().mean()) ** 0.5 / usual,
    }


_PLACES: dict[Case, tuple[Tensor, list[Tensor]]] = {}


def _places(case: Case) -> tuple[Tensor, list[Tensor]]:
    """[32, 32] masks: of the reference, and of true pictures."""
    if case not in _PLACES:
        true = [case.true(case.asks[0], 128, seed).mask for seed in TRUE_PLACES]
        _PLACES[case] = small(case.reference.mask), [small(mask) for mask in true]
    return _PLACES[case]


def small(mask: np.ndarray) -> Tensor:
    """[H, W] uint8 -> [32, 32], true on the subject."""
    return F.interpolate(as_floats(mask)[None, None], [GRID] * 2, mode="area")[0, 0] > 0.5


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two masks; 0 where both are empty."""
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


def crispness(pictures: Tensor, subject: Tensor) -> Tensor:
    """[B]: the mean change from pixel to pixel within the subject. pictures: [B, H, W, 3]; subject: [B, 32, 32]."""
    grey = pictures.mean(-1)
    mask = F.interpolate(subject[:, None], list(grey.shape[1:]), mode="nearest")[:, 0] > 0.5
    change = F.pad((grey[:, :, 1:] - grey[:, :, :-1]).abs(), (0, 1)) + F.pad(
        (grey[:, 1:] - grey[:, :-1]).abs(), (0, 0, 0, 1)
    )
    return (change * mask).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)


def mean(scores: Sequence[Scores]) -> Scores:
    """Of pictures that have the figure."""
    names = dict.fromkeys(name for one in scores for name in one)
    return {name: fmean(one[name] for one in scores if name in one) for name in names}


def batch(pictures: Sequence[np.ndarray]) -> Tensor:
    """[B, H, W, 3] in 0..1."""
    return torch.stack([as_floats(pixels) for pixels in pictures])
