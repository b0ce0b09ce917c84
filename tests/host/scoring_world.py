"""Individuals of the mini base's world as subjects and batches, and Score Pictures on them."""

from __future__ import annotations

import importlib
import json
from functools import cache
from types import SimpleNamespace
from typing import Any

import comfy.sd
import numpy as np
import torch
from dreamtuner_pack.dreamtuner_core.subject import Subject
from dreamtuner_pack.nodes.score_pictures import ScorePictures
from dreamtuner_pack.nodes.subject import EncodeSubjectImage
from torch import Tensor

from lab.demo import CHECKPOINT
from lab.world import Individual, compose, sample_individual

SIDE = 128


KINDS = ("robot", "mug", "house")


@cache
def base() -> SimpleNamespace:
    """The mini base in the host: model, clip and vae."""
    importlib.import_module("lab.mini_family")
    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT))
    return SimpleNamespace(model=model, clip=clip, vae=vae)


def shown(rng: np.random.Generator, **what: Any) -> tuple[Tensor, Tensor]:
    """A true picture [1, SIDE, SIDE, 3] of the world, and its mask [1, SIDE, SIDE]."""
    made = compose(rng, SIDE, size=(0.6, 0.75), **what)
    return tuple(torch.from_numpy(x.copy()).float()[None] / 255 for x in (made.pixels, made.mask))  # type: ignore[return-value]


def encoded(picture: Tensor, **inputs: Any) -> Subject:
    return EncodeSubjectImage.execute(picture, base().vae, clip=base().clip, resolution=SIDE, **inputs).args[0]


@cache
def case(kind: str) -> tuple[Individual, Subject, Tensor]:
    """An individual as a subject, and a batch: two of it, two others of its kind, two of another kind."""
    rng = np.random.default_rng(KINDS.index(kind))
    own, other = sample_individual(rng, kind), sample_individual(rng, kind)
    with torch.inference_mode():
        picture, mask = shown(rng, individual=own)
        subject = encoded(picture, mask=mask)
        another = KINDS[(KINDS.index(kind) + 1) % len(KINDS)]
        asked = [{"individual": own}] * 2 + [{"individual": other}] * 2 + [{"kind": another}] * 2
        return own, subject, torch.cat([shown(rng, **what)[0] for what in asked])


def score(images: Tensor, subject: Subject, **inputs: Any) -> SimpleNamespace:
    """The node's outputs by name; by the checkpoint's own keys where nothing else is asked."""
    ScorePictures.hidden = SimpleNamespace(prompt=None, unique_id=None, extra_pnginfo=None)
    found = ScorePictures.execute(images, subject, **inputs or {"model": base().model, "vae": base().vae}).args
    names = ("best", "accepted", "rejected", "sheet", "scores", "passed")
    return SimpleNamespace(**dict(zip(names, found)))


def figures(found: SimpleNamespace) -> list[dict[str, Any]]:
    return json.loads(found.scores)["pictures"]
