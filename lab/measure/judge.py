"""A quality report of the mini base: how often the judge names the concept and the scene that the text asked for.

The judge is trained on the training artwork alone. Its own accuracy on true pictures, as the base's autoencoder leaves
them, is told beside it, since a judge that is right in 90 of 100 cannot certify 95: of training drawings at new places,
and of held-out drawings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.host import say
from lab.measure.eye import SCENE_NAMES, Eye, as_floats
from lab.measure.statistics import Interval, share
from lab.measure.studio import Sampling, Studio
from lab.measure.subjects import WORDS, held_out_looks, random_pictures, training_looks
from lab.mini.checkpoint import write_whole
from lab.mini.compose import caption_of

ASKED_CONCEPT, ASKED_SCENE = 0.6, 0.9  # what issue 3 asks of a base that was trained on a CPU
TRUE_PICTURES = 300
Named = list[tuple[str, str, str, str]]
"""(concept asked, scene asked, concept named, scene named) of each picture."""


def judge_base(checkpoint: Path, each: int, out: Path) -> dict[str, Any]:
    """Ask for every concept on every scene, `each` times; print and write what the judge names."""
    studio = Studio(checkpoint, Sampling())
    eye = Eye(Sampling().side, leaves=studio.leaves)
    drawn = _accuracy(_drawn(eye, studio, each))
    found: dict[str, Any] = {
        "weights": studio.weights,
        "pictures the text asked for": drawn,
        "true pictures, training drawings": _accuracy(_true(eye, training_looks(), 71)),
        "true pictures, held-out drawings": _accuracy(_true(eye, held_out_looks(), 72)),
    }
    for name, told in found.items():
        if name != "weights":
            say(f"{name}: concept {_shown(told['concept'])}, scene {_shown(told['scene'])}")
    for name, asked in (("concept", ASKED_CONCEPT), ("scene", ASKED_SCENE)):
        say(f"{name}: {drawn[name][0]:.0%} where {asked:.0%} is asked for")
        say("  " + ", ".join(f"{key} {value:.0%}" for key, value in drawn[f"{name} by name"].items()))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda part: part.write_text(json.dumps(found, indent=1) + "\n"))
    print(out.resolve())
    return found


def _drawn(eye: Eye, studio: Studio, each: int) -> Named:
    named: Named = []
    for number, (concept, word) in enumerate(WORDS.items()):
        scenes = [scene for scene in SCENE_NAMES for _ in range(each)]
        seeds = [50_000 + 1000 * number + i for i in range(len(scenes))]
        prompts = [caption_of([word], scene) for scene in scenes]
        for start in range(0, len(scenes), 10):
            part = slice(start, start + 10)
            seen = eye.named(eye.see(studio.draw(studio.model, studio.clip, prompts[part], seeds[part])))
            named += [(concept, asked, c, s) for asked, c, s in zip(scenes[part], *seen)]
        right = np.mean([c == asked for asked, _, c, _ in named[-len(scenes) :]])
        say(f"{word}: named in {right:.0%} of {len(scenes)} pictures")
    return named


def _true(eye: Eye, looks: Sequence, seed: int) -> Named:
    known = random_pictures(looks, eye.side, TRUE_PICTURES, seed)
    seen = eye.named(eye.see(eye.leaves(as_floats(np.stack([p.pixels for _, _, p in known])))))
    return [(look.concept, scene, c, s) for (look, scene, _), c, s in zip(known, *seen)]


def _accuracy(named: Named) -> dict[str, Any]:
    """Fractions with their Wilson intervals, over all pictures and by what was asked."""
    told: dict[str, Any] = {"pictures": len(named)}
    for name, asked, seen in (("concept", 0, 2), ("scene", 1, 3)):
        right = [(picture[asked], picture[asked] == picture[seen]) for picture in named]
        told[name] = _rounded(share(sum(good for _, good in right), len(right)))
        told[f"{name} by name"] = {
            key: round(float(np.mean([good for k, good in right if k == key])), 3)
            for key in sorted({k for k, _ in right})
        }
    return told


def _rounded(x: Interval) -> list[float]:
    return [round(x.mean, 4), round(x.low, 4), round(x.high, 4)]


def _shown(x: Sequence[float]) -> str:
    return f"{x[0]:.3f} [{x[1]:.3f}, {x[2]:.3f}]"
