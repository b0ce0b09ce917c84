"""Likeness and text of pictures of held-out subjects, drawn by the mini base through the host: one row a setting.

A first table, from which the nodes' open defaults are chosen: every row draws the same subjects, scenes and seeds.
Writes figures (JSON) and one page of sheets that needs no network.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.demo import CHECKPOINT, SIDE
from lab.host import HOME, say
from lab.inside import import_host, import_pack


@dataclass(frozen=True)
class Row:
    """One setting. weight: w_ref, None = without the pack. guidance: (w_r, p_r, dt, dt') or None. mask: m_r in use."""

    name: str
    weight: float | None = None
    guidance: tuple[float, float, float, float] | None = None
    mask: bool = True


ROWS = [
    Row("plain text"),
    *(Row(f"w_ref {w:g}", w) for w in (1.0, 2.5, 3.0, 5.0, 10.0)),
    Row("w_ref 3, no mask", 3.0, mask=False),
    *(Row(f"w_ref 3, w_r {s:g}, p_r 0.9", 3.0, (s, 0.9, 0, 0)) for s in (1.0, 1.5, 2.0, 3.0, 5.0)),
    *(Row(f"w_ref 3, w_r {s:g}, p_r 0.5", 3.0, (s, 0.5, 0, 0)) for s in (2.0, 3.0)),
    Row("w_ref 3, w_r 2, p_r 0.9, dt 20, dt' 20", 3.0, (2.0, 0.9, 20, 20)),
    Row("w_ref 3, w_r 2, p_r 0.9, dt 50, dt' 50", 3.0, (2.0, 0.9, 50, 50)),
    Row("w_ref 3, p_r 0, dt 50, dt' 100", 3.0, (1.0, 0.0, 50, 100)),
]
STEPS, CFG, SAMPLER, SCHEDULER = 20, 4.0, "dpmpp_2m", "karras"
REFERENCE_SCENE = "yellow"  # behind the subject where the mask is off: what may bleed


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    if not CHECKPOINT.exists():
        say(f"{CHECKPOINT} is missing: `python3 -m lab mini` makes it.")
        return 1
    import_host()
    importlib.import_module("lab.mini_family")
    import torch

    rows = [row for row in ROWS if not options.rows or any(part in row.name for part in options.rows)]
    with torch.inference_mode():
        figures, page = Bench(options.subjects, options.scenes, options.seed).run(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    figures["command"] = " ".join(["python3 -m lab measure", *argv])
    _write(options.out / "measure.json", json.dumps(figures, indent=1) + "\n")
    _write(options.out / "measure.html", page)
    print(options.out.resolve() / "measure.html")
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m lab measure", description=__doc__)
    parser.add_argument("--subjects", type=int, default=8, help="how many held-out drawings")
    parser.add_argument("--scenes", nargs="+", default=["grass", "a night sky"], help="what the text asks for")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", nargs="*", help="only the rows whose name holds one of these")
    parser.add_argument("--out", type=Path, default=HOME / "measure", help="folder of measure.json and measure.html")
    return parser.parse_args(argv)


class Bench:
    """The mini base in the host, and the held-out subjects."""

    def __init__(self, subjects: int, scenes: Sequence[str], seed: int) -> None:
        import comfy.sd

        from lab.likeness import Likeness
        from lab.mini.artwork import ARCHIVE, load_artwork, load_held_out
        from lab.mini.config import CPU_CONCEPTS

        self.scenes, self.seed = list(scenes), seed
        self._subjects: dict[Any, Any] = {}
        self.pack = import_pack()
        self.model, self.clip, self.vae, _ = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT))
        self.words = {concept: word for word, concept in CPU_CONCEPTS.items()}
        artwork = {key: drawing for key, drawing in load_artwork(ARCHIVE).items() if key[0] in self.words}
        held_out = sorted(key for key in artwork if key in load_held_out() and key[1] != "fluent-flat")
        self.keys = held_out[:: max(1, len(held_out) // subjects)][:subjects]
        self.artwork = artwork
        self.likeness = Likeness(artwork, [key for key in artwork if key not in load_held_out()], SIDE)

    def run(self, rows: Sequence[Row]) -> tuple[dict[str, Any], str]:
        """All rows: figures, and the page."""
        import numpy as np

        cells = [(key, scene) for key in self.keys for scene in self.scenes]
        calibration = float(np.mean([self.likeness.other_drawing(key, scene) for key, scene in cells]))
        figures: dict[str, Any] = {
            "subjects": ["/".join(key) for key in self.keys],
            "scenes": self.scenes,
            "seed": self.seed,
            "sampling": {"steps": STEPS, "cfg": CFG, "sampler": SAMPLER, "scheduler": SCHEDULER, "side": SIDE},
            "calibration": {"same drawing": 1.0, "same concept, other drawing": calibration, "another concept": 0.0},
            "rows": [],
        }
        sheets = []
        for row in rows:
            begun, pictures, scores = time.monotonic(), [], []
            for key, scene in cells:
                picture = self.draw(row, key, scene)
                pictures.append(picture)
                scores.append(self.likeness.score(picture, key, key[0], scene))
            identities = np.array([s.identity for s in scores])
            figures["rows"].append(
                {
                    "name": row.name,
                    "identity": float(identities.mean()),
                    "identity_error": float(identities.std(ddof=1) / len(identities) ** 0.5),
                    "concept": float(np.mean([s.concept for s in scores])),
                    "scene": float(np.mean([s.scene for s in scores])),
                    "reference_scene_seen": float(np.mean([s.seen_scene == REFERENCE_SCENE for s in scores])),
                    "seconds": time.monotonic() - begun,
                }
            )
            say(_line(figures["rows"][-1]))
            sheets.append((row.name, _strip(pictures)))
        references = _strip([self.reference(key, True)[0] for key in self.keys for _ in self.scenes])
        return figures, _page(figures, [("reference", references), *sheets])

    def draw(self, row: Row, key: tuple[str, str], scene: str) -> Any:
        """[SIDE, SIDE, 3] in 0..1: that row's picture of the held-out subject on the scene."""
        import comfy.sample
        import torch

        from lab.mini.compose import caption_of

        core = self.pack.dreamtuner_core.host
        model = self.model
        if row.weight is not None:
            model = core.apply.apply_subject(model, self.subject(key, row.mask), row.weight)
        if row.guidance is not None:
            guidance = self.pack.dreamtuner_core.guidance.Guidance(*row.guidance)
            model = core.apply.apply_guidance(model, guidance)
        word = self.words[key[0]]
        wanted, unwanted = self.text(caption_of([word], scene)), self.text("")
        empty = torch.zeros(1, 4, SIDE // 8, SIDE // 8)
        noise = comfy.sample.prepare_noise(empty, self.seed)
        latent = comfy.sample.sample(
            model, noise, STEPS, CFG, SAMPLER, SCHEDULER, wanted, unwanted, empty, disable_pbar=True, seed=self.seed
        )
        return self.vae.decode(latent)[0].clamp(0, 1)

    def text(self, text: str) -> Any:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def subject(self, key: tuple[str, str], masked: bool) -> Any:
        """The held-out drawing as Encode Subject Image gives it; kept, so that its features are too."""
        from lab.mini.compose import caption_of

        if (key, masked) not in self._subjects:
            picture, mask = self.reference(key, masked)
            caption = self.text(caption_of([self.words[key[0]]], "white" if masked else REFERENCE_SCENE))
            encode = self.pack.dreamtuner_core.host.encode.encode_subject
            self._subjects[key, masked] = encode(picture[None], self.vae, mask, caption, None, "subject", SIDE)[0]
        return self._subjects[key, masked]

    def reference(self, key: tuple[str, str], masked: bool) -> tuple[Any, Any]:
        """(picture [H, W, 3], mask [1, H, W] or None): cut out, or whole on a scene of its own."""
        import numpy as np
        import torch

        from lab.likeness import placed

        drawing = self.artwork[key]
        if not masked:
            return torch.from_numpy(placed(drawing, REFERENCE_SCENE, SIDE, 7)).float() / 255, None
        pixels = torch.from_numpy(np.asarray(drawing).copy()).float() / 255
        alpha = pixels[..., 3]
        return pixels[..., :3] * alpha[..., None] + (1 - alpha[..., None]), alpha[None]


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['name']:40} identity {row['identity']:.3f} ± {row['identity_error']:.3f}  concept {row['concept']:.2f}  "
        f"scene {row['scene']:.2f}  reference's scene {row['reference_scene_seen']:.2f}"
    )


def _strip(pictures: Sequence[Any]) -> str:
    """Pictures side by side, as a data URL."""
    import torch
    from PIL import Image
    from torch.nn import functional as F

    same = [F.interpolate(p.movedim(-1, 0)[None], [SIDE, SIDE], mode="area")[0].movedim(0, -1) for p in pictures]
    data = io.BytesIO()
    Image.fromarray((torch.cat(same, dim=1) * 255).round().byte().numpy()).save(data, "WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()


def _page(figures: dict[str, Any], sheets: Sequence[tuple[str, str]]) -> str:
    table = "\n".join(_line(row) for row in figures["rows"])
    body = "\n".join(f"<h3>{name}</h3><img src='{strip}'>" for name, strip in sheets)
    title = f"{', '.join(figures['subjects'])}; each on {' and '.join(figures['scenes'])}; seed {figures['seed']}"
    return (
        "<!doctype html><meta charset=utf-8><title>DreamTuner: measure</title>"
        f"<style>body{{font-family:sans-serif}}img{{display:block}}</style><p>{title}</p><pre>{table}</pre>{body}\n"
    )


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.rename(path)
