"""The shipped workflow on a real ComfyUI, once with one picture of a subject and twice with less of the pack."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from PIL import Image

from lab import workflow
from lab.client import ComfyError, Progress
from lab.host import HOME, ROOT, say
from lab.inside import host_tree
from lab.server import ComfyServer
from lab.sheet import Cell, contact_sheet
from lab.workflow import Graph

MINI = ROOT / "lab" / "mini"
CHECKPOINT = MINI / "weights" / "mini_base.safetensors"
FAMILY = ROOT / "lab" / "mini_family"  # registers the mini base's small member of the SD1.x family with the host
SIDE = 128  # pixels; what the mini base draws

S_S_A, GUIDANCE = "DreamTunerApplySelfSubjectAttention", "DreamTunerReferenceGuidance"


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    missing = [path for path in (CHECKPOINT, FAMILY, options.reference) if not path.exists()]
    if missing:
        say(f"{missing[0]} is missing: the demo draws with the mini base, which `python3 -m lab mini` makes.")
        return 1
    try:
        sheet = _pictures(options)
    except ComfyError as error:
        say(f"the demo failed: {error}")
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out)
    print(options.out.resolve())
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m lab demo", description=__doc__)
    parser.add_argument("--reference", type=Path, default=MINI / "subjects" / "teapot-twemoji.png",
                        help="one picture of the subject; its transparency is the mask")  # fmt: skip
    parser.add_argument("--caption", default="a teapot, on white", help="what the reference shows")
    parser.add_argument("--prompt", default="a teapot, on grass", help="what to draw")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HOME / "demo.png", help="the sheet")
    return parser.parse_args(argv)


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
    workflow.node(graph, "KSampler").update(seed=seed, steps=steps)
    return deepcopy(graph)


def _pictures(options: argparse.Namespace) -> Image.Image:
    start = time.monotonic()
    say("starting ComfyUI")
    with ComfyServer(host_tree(), custom_nodes=[FAMILY], models={"checkpoints": [CHECKPOINT]}) as server:
        say(f"it answers at {server.url} after {time.monotonic() - start:.0f} s")
        whole = demo_graph(server, options.reference, options.caption, options.prompt, options.seed, options.steps)
        variants = {
            "without the pack": workflow.without(whole, GUIDANCE, S_S_A),
            "self-subject attention": workflow.without(whole, GUIDANCE),
            "and reference guidance": whole,
        }
        cells = [Cell(Image.open(options.reference), "reference", options.caption)]
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
    return contact_sheet(cells, f"“{options.prompt}”, seed {options.seed}, {options.steps} steps")


def _progress(label: str) -> Progress:
    """One line in the terminal that is written over; silent where the output is no terminal."""

    def show(node_id: str, done: int, steps: int) -> None:
        if steps and sys.stderr.isatty():
            print(f"\r{label}: {done}/{steps}", end="\n" if done == steps else "", file=sys.stderr, flush=True)

    return show
