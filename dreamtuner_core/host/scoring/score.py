"""Measuring a batch of pictures for the quality gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...picture.checked import checked_pictures
from ...scoring.gate import Gate
from ...scoring.scores import Limits, Score, best_match, colour, cosine, faults, sharpness
from ...subject import Subject, frame
from ...texts import shown
from ..metadata import note_on_node, note_with_pictures
from ..subject.find import find_subject
from .folder import FolderTower
from .keys import as_subject, keys
from .towers import HostTower, Tower

METADATA = "dreamtuner_scores"  # key in a picture's metadata
BY_KEYS = "keys (order alone)"


class Framed(NamedTuple):
    """A subject alone: picture [1, H, W, 3] and mask [1, H, W]; the complete picture if no subject was found."""

    picture: Tensor
    mask: Tensor
    found: bool = True


@dataclass(frozen=True)
class Towers:
    """The node's inputs that measure likeness and text match. folder: one of `tower_folders`, or empty."""

    clip_vision: Any | None = None
    clip: Any | None = None
    text: str = ""
    model: ModelPatcher | None = None
    vae: Any | None = None
    folder: str = ""

    def check(self, limits: Limits) -> None:
        """Raise ValueError, in one sentence, if they cannot measure what the limits need."""
        tower = self.clip_vision is not None or self.folder
        if self.clip_vision is not None and self.folder:
            raise ValueError(
                f"both clip_vision and the tower_folder '{shown(self.folder)}' would measure likeness; unlink one, or "
                "set tower_folder to none."
            )
        if not tower and (self.model is None or self.vae is None):
            raise ValueError(
                "nothing is linked that measures likeness; link clip_vision (CLIP or DINOv2), or the model and vae of "
                "the checkpoint that drew the pictures."
            )
        if not tower and limits.likeness:
            raise ValueError(
                f"min_likeness is {limits.likeness:g}, but the checkpoint's own keys only rank pictures and have no "
                "threshold; link clip_vision, or set min_likeness to 0."
            )
        if self.clip is not None and self.clip_vision is None:
            raise ValueError(
                "text match needs the image tower that goes with the clip; link clip_vision, or unlink clip."
            )
        if limits.text and not self.reads_text:
            raise ValueError(
                f"min_text is {limits.text:g}, but there is no text to match; link clip and clip_vision and write the "
                "text, or set min_text to 0."
            )
        if self.clip is not None and not self.text.strip():
            raise ValueError("the text to match is empty; write what the pictures should show, or unlink clip.")

    @property
    def reads_text(self) -> bool:
        """Whether text match is measured."""
        return self.clip is not None or bool(self.folder and self.text.strip())

    def tower(self) -> Tower | None:
        """The image tower, or None. Raises ValueError, in one sentence, for a folder without a CLIP or DINO."""
        if self.folder:
            return FolderTower(self.folder)
        return None if self.clip_vision is None else HostTower(self.clip_vision, self.clip)


def score_pictures(images: Tensor, subject: Subject, towers: Towers, limits: Limits) -> Gate:
    """Measure each image [B, H, W, 3] alone, so that no figure depends on the batch or its order.

    Raises ValueError, in one sentence, if images is not a batch of pictures, or the towers cannot measure it.
    """
    towers.check(limits)
    images = checked_pictures(images)
    tower = towers.tower()
    wanted = tower.text(towers.text) if tower is not None and towers.reads_text else None
    references = [_framed_reference(picture) for picture in subject.pictures()]
    masks = find_subject(images)
    side = references[0].picture.shape[1]
    framed = [_framed(image[None], mask[None], side) for image, mask in zip(images, masks)]
    likenesses = (
        _by_keys(towers, subject, references, framed) if tower is None else _by_tower(tower, references, framed)
    )
    scores = []
    for image, mask, seen, likeness in zip(images, masks, framed, likenesses):
        reference = references[likeness.index(max(likeness))]  # the picture of the subject that it resembles most
        pair = seen.picture[0], seen.mask[0], reference.picture[0], reference.mask[0]
        text = None if tower is None or wanted is None else cosine(tower.picture(image[None]), wanted)
        found = faults(image, mask, reference.picture[0], reference.mask[0])
        scores.append(Score(max(likeness), text, sharpness(*pair), colour(*pair), found))
    return Gate(scores, limits, BY_KEYS if tower is None else tower.name)


def _by_tower(tower: Tower, references: Sequence[Framed], framed: Sequence[Framed]) -> list[list[float]]:
    """Likeness of each picture to each reference."""
    wanted = [tower.picture(reference.picture) for reference in references]

    def likeness(seen: Framed) -> list[float]:
        found = tower.picture(seen.picture)
        return [cosine(found, one) for one in wanted]

    return _each(framed, likeness)


def _by_keys(
    towers: Towers, subject: Subject, references: Sequence[Framed], framed: Sequence[Framed]
) -> list[list[float]]:
    """Likeness of each picture to each reference. All are read with the caption of the subject's main picture."""
    model = towers.model
    assert model is not None
    # first the VAE for all, then the U-Net for all, so that the two are loaded once
    seen = [as_subject(towers.vae, x.picture, x.mask, subject) for x in (*references, *framed)]
    wanted = [keys(model, one) for one in seen[: len(references)]]

    def likeness(one: Subject) -> list[float]:
        found = keys(model, one)
        return [best_match(r.k[0], r.mask, found.k[0]) for r in wanted]

    return _each(seen[len(references) :], likeness)


def _each(items: Sequence[Any], measure: Callable[[Any], list[float]]) -> list[list[float]]:
    found, progress = [], comfy.utils.ProgressBar(len(items))
    for item in items:
        comfy.model_management.throw_exception_if_processing_interrupted()
        found.append(measure(item))
        progress.update(1)
    return found


def _framed(image: Tensor, mask: Tensor, resolution: int) -> Framed:
    """The subject alone, on white; if none was found, the complete picture at the same size."""
    if mask.max() > 0.5:
        picture, framed_mask = frame(image, mask, resolution)
        assert framed_mask is not None
        return Framed(picture, framed_mask)
    picture, _ = frame(image, torch.ones(image.shape[:3]), resolution)
    return Framed(picture, torch.ones(picture.shape[:3]), False)


def _framed_reference(subject: Subject) -> Framed:
    if subject.mask is not None:
        return Framed(subject.picture, subject.mask)
    framed = _framed(subject.picture, find_subject(subject.picture), round(subject.picture.shape[1:3].numel() ** 0.5))
    if not framed.found:
        raise ValueError(
            "the subject has no mask, and none could be found in its picture; link a mask to Encode Subject Image."
        )
    return framed


def tell_figures(gate: Gate, of: Sequence[int], prompt: Any, node_id: str | None, extra_pnginfo: Any) -> None:
    """Add the figures of these pictures to the metadata that the host's save nodes write.

    prompt: the graph as it was queued. extra_pnginfo: the page's metadata. Either may be None.
    """
    figures = gate.figures(of)
    note_with_pictures(extra_pnginfo, METADATA, figures)
    if isinstance(prompt, dict):
        note_on_node(prompt.get(node_id), METADATA, figures)
