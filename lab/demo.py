"""The shipped workflow on a real ComfyUI: pictures of each subject with less and with more of the pack."""

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
from lab.mini import shipped
from lab.workflow import Graph

if TYPE_CHECKING:  # so that --help needs no environment
    from PIL.Image import Image

    from dreamtuner_core.picture.sheet import Cell
    from lab.client import Progress
    from lab.server import ComfyServer

CHECKPOINT, ENCODER = shipped.FOLDER / shipped.BASE, shipped.FOLDER / shipped.ENCODER
FAMILY = ROOT / "lab" / "mini_family"  # registers the mini base with the host, as a small member of the SD1.x family
SIDE = 128  # pixels, of the mini base's pictures
SAMPLING = {"cfg": 4.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}  # good settings for it

S_S_A, GUIDANCE = "DreamTunerApplySelfSubjectAttention", "DreamTunerReferenceGuidance"
LOAD_ENCODER, APPLY_ENCODER = "DreamTunerLoadSubjectEncoder", "DreamTunerApplySubjectEncoder"
STRENGTH = 0.2  # beta
SUBJECTS = ("robot", "car", "shirt")
COLUMNS = 5  # of the sheet
WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # of the film
FRAME, LAST = 700, 2000  # milliseconds


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    from dreamtuner_core.picture.sheet import contact_sheet
    from lab.client import ComfyError

    for path in (CHECKPOINT, ENCODER, options.reference or FAMILY):
        if not path.exists():
            say(f"{path} is missing: the demo draws with the mini base (`python3 -m lab mini`).")
            return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if options.film:
            frames = _frames(options)
            duration = [FRAME] * (len(frames) - 1) + [LAST]
            frames[0].save(options.out, save_all=True, append_images=frames[1:], duration=duration, loop=0)
        else:
            cells, title = _pictures(options)
            contact_sheet(cells, title, columns=COLUMNS).save(options.out)
    except (ComfyError, ValueError) as error:
        say(f"the demo failed: {error}")
        return 1
    print(options.out.resolve())
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m lab demo", description=__doc__)
    parser.add_argument("--subject", nargs="+", default=SUBJECTS, help="kinds that the mini base can draw, a row each")
    parser.add_argument("--scene", default="a beach", help="what to draw them on")
    parser.add_argument("--individual", type=int, default=0, help="which individual, of those it was not trained on")
    parser.add_argument("--reference", type=Path, help="your own picture of the first subject, cut out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--film", action="store_true", help="instead of the sheet, a film: the weight rises, frame by frame"
    )
    parser.add_argument("--out", type=Path, help=f"the sheet ({HOME / 'demo.png'}) or the film (demo.webp there)")
    options = parser.parse_args(argv)
    options.out = options.out or HOME / ("demo.webp" if options.film else "demo.png")
    return options


def unseen_subject(kind: str, number: int) -> Path:
    """An individual that the mini base was not trained on, as a PNG whose transparency is the mask."""
    import numpy as np
    from PIL import Image

    from lab.world import KINDS, View, draw, sample_individual

    if kind not in KINDS:
        raise ValueError(f"the mini base cannot draw {kind!r}; choose one of {', '.join(KINDS)}.")
    individual = sample_individual(np.random.default_rng(number), kind, held_out=True)
    path = HOME / f"demo_{kind}.png"
    Image.fromarray(draw(individual, View(pose=(*KINDS[kind].poses, "")[0]), 2 * SIDE)).save(path)
    return path


def demo_graph(server: ComfyServer, reference: Path, caption: str, prompt: str, seed: int, steps: int) -> Graph:
    """The shipped workflow with reference guidance switched on, for the mini base and its size."""
    graph = workflow.api_form(workflow.load("one_picture"), server.object_info(), bypassed=True)
    workflow.node(graph, "Load Checkpoint")["ckpt_name"] = CHECKPOINT.name
    workflow.node(graph, "Reference picture")["image"] = server.upload_image(reference)
    workflow.node(graph, "Encode Subject Image")["resolution"] = SIDE
    workflow.node(graph, "Empty Latent Image").update(width=SIDE, height=SIDE)
    workflow.node(graph, "Caption of the reference")["text"] = caption
    workflow.node(graph, "Prompt")["text"] = prompt
    workflow.node(graph, "Negative prompt")["text"] = ""
    workflow.node(graph, "KSampler").update(seed=seed, steps=steps, **SAMPLING)
    return graph


def with_encoder(graph: Graph) -> Graph:
    """The same graph with the mini base's own subject encoder, for the subject's rough appearance."""
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


def _pictures(options: argparse.Namespace) -> tuple[list[Cell], str]:
    """The sheet's cells, row by row, and its title."""
    start, cells = time.monotonic(), []
    with _server() as server:
        say(f"it answers at {server.url} after {time.monotonic() - start:.0f} s")
        for kind, reference in zip(options.subject, _references(options)):
            cells += _row(server, kind, reference, options)
    say(f"done in {time.monotonic() - start:.0f} s")
    return cells, f"Individuals that the mini base was not trained on, seed {options.seed}, {options.steps} steps"


def _frames(options: argparse.Namespace) -> list[Image]:
    """Every subject beside its reference, one frame for each weight."""
    from PIL import Image

    from dreamtuner_core.picture.sheet import Cell, contact_sheet

    rows = list(zip(options.subject, _references(options)))
    frames = []
    with _server() as server:
        for weight in WEIGHTS:
            cells = []
            for kind, reference in rows:
                graph = workflow.without(_graph(server, kind, reference, options), GUIDANCE)
                workflow.node(graph, "Apply Self-Subject Attention")["reference_weight"] = weight
                cells += [Cell(Image.open(reference)), Cell(_drawn(server, graph, f"{kind}, weight {weight:g}"))]
            frames.append(contact_sheet(cells, f"reference_weight {weight:g}", columns=2, side=192))
    return frames


def _references(options: argparse.Namespace) -> list[Path]:
    references = [unseen_subject(kind, options.individual) for kind in options.subject]
    return [options.reference, *references[1:]] if options.reference else references


def _server() -> ComfyServer:
    from lab.inside import host_tree
    from lab.server import ComfyServer

    say("starting ComfyUI")
    models = {"checkpoints": [CHECKPOINT], "subject_encoders": [ENCODER]}
    return ComfyServer(host_tree(), custom_nodes=[FAMILY], models=models)


def _graph(server: ComfyServer, kind: str, reference: Path, options: argparse.Namespace) -> Graph:
    from lab.world import caption_of

    prompt, caption = caption_of(kind, options.scene), caption_of(kind, "a white background")
    return demo_graph(server, reference, caption, prompt, options.seed, options.steps)


def _drawn(server: ComfyServer, graph: Graph, label: str) -> Image:
    begun = time.monotonic()
    result = server.queue(graph, _progress(label))
    say(f"{label}: {time.monotonic() - begun:.1f} s")
    return server.images(result, workflow.node_id(graph, "Save Image"))[0]


def _row(server: ComfyServer, kind: str, reference: Path, options: argparse.Namespace) -> list[Cell]:
    """One subject: its picture, and pictures with less and with more of the pack."""
    from PIL import Image

    from dreamtuner_core.picture.sheet import Cell

    whole = _graph(server, kind, reference, options)
    prompt = workflow.node(whole, "Prompt")["text"]
    variants = {
        "without the pack": workflow.without(whole, GUIDANCE, S_S_A),
        "self-subject attention": workflow.without(whole, GUIDANCE),
        "with reference guidance": whole,
        "with a subject encoder": with_encoder(workflow.without(whole, GUIDANCE)),
    }
    cells = [Cell(Image.open(reference), "the one reference", workflow.node(whole, "Caption of the reference")["text"])]
    for label, graph in variants.items():
        cells.append(Cell(_drawn(server, graph, f"{kind}, {label}"), label, prompt))
    return cells


def _progress(label: str) -> Progress:
    """One line in the terminal, overwritten at each step; silent if the output is not a terminal."""

    def show(node_id: str, done: int, steps: int) -> None:
        if steps and sys.stderr.isatty():
            print(f"\r{label}: {done}/{steps}", end="\n" if done == steps else "", file=sys.stderr, flush=True)

    return show
