"""The shipped workflow on a real ComfyUI with one picture of a subject: with less of the pack, whole, and with more."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from lab import workflow
from lab.host import HOME, ROOT, say
from lab.workflow import Graph

if TYPE_CHECKING:  # so that --help needs no environment
    from dreamtuner_core.sheet import Cell
    from lab.client import Progress
    from lab.server import ComfyServer

MINI = ROOT / "lab" / "mini"
CHECKPOINT = MINI / "weights" / "mini_base.safetensors"
ENCODER = MINI / "weights" / "mini_encoder.safetensors"
FAMILY = ROOT / "lab" / "mini_family"  # registers the mini base's small member of the SD1.x family with the host
ARTWORK = MINI / "artwork.zip"
SIDE = 128  # pixels; what the mini base draws
SAMPLING = {"cfg": 4.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}  # what suits it

S_S_A, GUIDANCE = "DreamTunerApplySelfSubjectAttention", "DreamTunerReferenceGuidance"
LOAD_ENCODER, APPLY_ENCODER = "DreamTunerLoadSubjectEncoder", "DreamTunerApplySubjectEncoder"
STRENGTH = 0.2  # beta
PROBABILITY = 0.5  # p_r: the mini base draws little without its text's guidance, which 0.9 hardly leaves it


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    from dreamtuner_core.sheet import contact_sheet
    from lab.client import ComfyError

    for path in (CHECKPOINT, ENCODER, FAMILY, options.reference or ARTWORK):
        if not path.exists():
            say(f"{path} is missing: the demo draws with the mini base and its artwork (`python3 -m lab mini`).")
            return 1
    try:
        reference = options.reference or held_out_subject(options.subject)
        cells, title = _pictures(options, reference)
    except (ComfyError, ValueError) as error:
        say(f"the demo failed: {error}")
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(cells, title).save(options.out)
    if options.card:
        from lab.card import card

        card(cells[3].picture, cells[0].picture).save(options.card, quality=88)
    print(options.out.resolve())
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m lab demo", description=__doc__)
    parser.add_argument("--subject", default="butterfly", help="a thing that the mini base can draw")
    parser.add_argument("--scene", default="a beach", help="what to draw it on")
    parser.add_argument("--reference", type=Path, help="a picture of it, cut out; else a drawing it was not trained on")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HOME / "demo.png", help="the sheet")
    parser.add_argument("--card", type=Path, help="also write a workflow's .jpg")
    return parser.parse_args(argv)


def held_out_subject(word: str) -> Path:
    """A drawing of the thing that the mini base never saw, as a PNG whose transparency is the mask."""
    from lab.mini.artwork import load_artwork, load_held_out
    from lab.mini.config import CPU_CONCEPTS

    concept = CPU_CONCEPTS.get(word, word)
    drawings = {key: drawing for key, drawing in load_artwork(ARTWORK).items() if key in load_held_out()}
    known = [other for other, name in CPU_CONCEPTS.items() if any(key[0] == name for key in drawings)]
    if word not in known:
        raise ValueError(f"there is no untrained drawing of {word!r}; choose one of {', '.join(known)}.")
    path = HOME / "demo_reference.png"
    next(drawing for key, drawing in drawings.items() if key[0] == concept).save(path)
    return path


def demo_graph(server: ComfyServer, reference: Path, caption: str, prompt: str, seed: int, steps: int) -> Graph:
    """The shipped workflow, with the mini base and its size put in."""
    graph = workflow.api_form(workflow.load("one_picture"), server.object_info())
    workflow.node(graph, "Load Checkpoint")["ckpt_name"] = CHECKPOINT.name
    workflow.node(graph, "Reference picture")["image"] = server.upload_image(reference)
    workflow.node(graph, "Encode Subject Image")["resolution"] = SIDE
    workflow.node(graph, "Empty Latent Image").update(width=SIDE, height=SIDE)
    workflow.node(graph, "Caption of the reference")["text"] = caption
    workflow.node(graph, "Prompt")["text"] = prompt
    workflow.node(graph, "Negative prompt")["text"] = ""
    workflow.node(graph, "Reference Guidance")["reference_probability"] = PROBABILITY
    workflow.node(graph, "KSampler").update(seed=seed, steps=steps, **SAMPLING)
    return graph


def with_encoder(graph: Graph) -> Graph:
    """The same graph, the subject's rough looks brought in by the mini base's own subject encoder."""
    graph = deepcopy(graph)
    encode, read = (
        workflow.node_id(graph, title) for title in ("Encode Subject Image", "Apply Self-Subject Attention")
    )
    load = {"class_type": LOAD_ENCODER, "inputs": {"subject_encoder": ENCODER.name}}
    graph["load_encoder"] = load | {"_meta": {"title": "Load Subject Encoder"}}
    graph[encode]["inputs"]["subject_encoder"] = ["load_encoder", 0]
    inputs = {"model": graph[read]["inputs"]["model"], "subject": [encode, 0], "strength": STRENGTH}
    inputs |= {"start_percent": 0.0, "end_percent": 1.0}
    graph["apply_encoder"] = {
        "class_type": APPLY_ENCODER,
        "inputs": inputs,
        "_meta": {"title": "Apply Subject Encoder"},
    }
    graph[read]["inputs"]["model"] = ["apply_encoder", 0]
    return graph


def _pictures(options: argparse.Namespace, reference: Path) -> tuple[list[Cell], str]:
    """The sheet's cells and its title."""
    from PIL import Image

    from dreamtuner_core.sheet import Cell
    from lab.inside import host_tree
    from lab.mini.compose import caption_of
    from lab.server import ComfyServer

    prompt, caption = caption_of([options.subject], options.scene), caption_of([options.subject], "white")
    start = time.monotonic()
    say("starting ComfyUI")
    models = {"checkpoints": [CHECKPOINT], "subject_encoders": [ENCODER]}
    with ComfyServer(host_tree(), custom_nodes=[FAMILY], models=models) as server:
        say(f"it answers at {server.url} after {time.monotonic() - start:.0f} s")
        whole = demo_graph(server, reference, caption, prompt, options.seed, options.steps)
        variants = {
            "without the pack": workflow.without(whole, GUIDANCE, S_S_A),
            "self-subject attention": workflow.without(whole, GUIDANCE),
            f"with reference guidance, p_r {PROBABILITY:g}": whole,
            "with a subject encoder": with_encoder(workflow.without(whole, GUIDANCE)),
        }
        cells = [Cell(Image.open(reference), "reference", caption)]
        for label, graph in variants.items():
            begun = time.monotonic()
            result = server.queue(graph, _progress(label))
            took = f"{time.monotonic() - begun:.1f} s"
            say(f"{label}: {took}")
            if len(cells) == 1:
                seen = server.images(result, workflow.node_id(graph, "What the method sees"))[0]
                cells.append(Cell(seen, "what the method sees", "red is masked out"))
            cells.append(Cell(server.images(result, workflow.node_id(graph, "Save Image"))[0], label, took))
    say(f"done in {time.monotonic() - start:.0f} s")
    return cells, f"“{prompt}”, seed {options.seed}, {options.steps} steps"


def _progress(label: str) -> Progress:
    """One line in the terminal that is written over; silent where the output is no terminal."""

    def show(node_id: str, done: int, steps: int) -> None:
        if steps and sys.stderr.isatty():
            print(f"\r{label}: {done}/{steps}", end="\n" if done == steps else "", file=sys.stderr, flush=True)

    return show
