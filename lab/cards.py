"""The cards of the shipped workflows: each is run on the mini base, as a new user would, and its picture is its card.

The inputs are pictures of invented individuals, and sizes are those of the mini base; nothing else is changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lab.host import HOME, say
from lab.mini import shipped
from lab.workflow import WORKFLOWS, Graph, api_form, load, needs, node, node_id

if TYPE_CHECKING:
    from PIL import Image

    from lab.server import ComfyServer

THING, NAME = "robot", "my_subject"
TEXTS = {  # by the nodes' titles, in words that the mini base knows
    "Prompt": f"a {THING}, on a beach",
    "First prompt": f"a {THING}, on a beach",
    "Second prompt": f"a {THING}, on snow",
    "Negative prompt": "",
    "Caption of the reference": f"a {THING}, on a white background",
}
WIDE = f"a {THING}, on grass"  # the mini base's caption of a wide picture of two
TUNED = f"a {THING} embedding:{NAME}, on grass"
STORY = "\n".join(f"a {THING}, on {scene}" for scene in ("a beach", "grass", "snow", "a night sky"))


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    from lab.client import ComfyError

    try:
        options.out.mkdir(parents=True, exist_ok=True)
        with server() as running:
            for name in names(options.names):
                path = options.out / f"{name}.jpg"
                draw_card(running, name, options).save(path, quality=88)
                say(str(path))
    except (ComfyError, ValueError) as error:
        say(f"the cards failed: {error}")
        return 1
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m lab cards", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of workflows, with or without the number; else all")
    parser.add_argument("--seed", type=int, default=4, help="of the samplers")
    parser.add_argument("--individual", type=int, default=7, help="which invented individual is the subject")
    parser.add_argument("--steps", type=int, default=25, help="of the samplers")
    parser.add_argument("--tuning-steps", type=int, default=300, help="of Subject Tuning")
    parser.add_argument("--out", type=Path, default=WORKFLOWS, help="folder of the cards")
    return parser.parse_args(argv)


def names(wanted: Sequence[str] = ()) -> list[str]:
    """Files of the workflows without their ending, in order. Raises ValueError for one that is not shipped."""
    shipped = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
    wanted = [name[3:] if name in shipped else name for name in wanted]
    unknown = [name for name in wanted if name not in {stem[3:] for stem in shipped}]
    if unknown:
        raise ValueError(f"there is no workflow {unknown[0]!r}; there are {', '.join(stem[3:] for stem in shipped)}.")
    return [stem for stem in shipped if (stem[3:] in wanted if wanted else not needs(WORKFLOWS / f"{stem}.json"))]


def server() -> ComfyServer:
    """A ComfyUI with the pack, the mini base, its ControlNet and its subject encoder."""
    from lab.demo import CHECKPOINT, ENCODER, FAMILY
    from lab.inside import host_tree
    from lab.server import ComfyServer

    control = CHECKPOINT.with_name(shipped.CONTROL)
    models = {"checkpoints": [CHECKPOINT], "subject_encoders": [ENCODER], "controlnet": [control]}
    return ComfyServer(host_tree(), custom_nodes=[FAMILY], models={**models, "loras": [], "embeddings": []})


def pictures(individual: int = 7) -> dict[str, Image.Image]:
    """The pictures for the LoadImage nodes, by their titles: cut-out subjects, pictures to start from, a layout."""
    import numpy as np
    from PIL import Image

    from lab.demo import SIDE
    from lab.world import compose, draw, sample_individual, sample_view

    def drawn(seed: int) -> Image.Image:
        rng = np.random.default_rng(seed)
        one = sample_individual(rng, THING, held_out=True)
        return Image.fromarray(draw(one, sample_view(rng, THING), 4 * SIDE))

    start = compose(np.random.default_rng(individual + 1), SIDE, kind=THING, scene="grass")
    room = compose(np.random.default_rng(individual + 2), SIDE, kind="house", scene="a beach")
    hole = Image.new("L", (SIDE, SIDE), 255)
    hole.paste(0, (SIDE // 4, SIDE // 4, SIDE - 8, SIDE - 8))  # LoadImage reads this as the painted mask
    painted = Image.fromarray(room.pixels).convert("RGBA")
    painted.putalpha(hole)
    return {
        "Reference picture": drawn(individual),
        "Reference picture 1": drawn(individual),
        "Reference picture 2": drawn(individual + 1),
        "Picture to start from": Image.fromarray(start.pixels),
        "Picture to paint in": painted,
        "Layout": Image.fromarray(start.mask).convert("RGB"),
    }


def fitted(server: ComfyServer, name: str, given: dict[str, Image.Image], steps: int, seed: int = 1) -> Graph:
    """The workflow with that name (without the number), for the mini base, with its muted nodes switched on."""
    from lab.demo import CHECKPOINT, ENCODER, SAMPLING, SIDE

    graph = api_form(load(name), server.object_info(), muted=True)
    for key, entry in list(graph.items()):
        inputs, title = entry["inputs"], entry["_meta"]["title"]
        for side in {"width", "height", "resolution"} & set(inputs):
            inputs[side] = (inputs[side] or 512) * SIDE // 512  # 0 is auto: 512 for SD1.x
        if "steps" in inputs and "cfg" in inputs:
            inputs.update(seed=seed, steps=steps, **SAMPLING)
        if entry["class_type"] == "LoadImage":
            inputs["image"] = server.upload_image(_saved(given[title], title))
        elif entry["class_type"] == "CLIPTextEncode":
            inputs["text"] = TEXTS[title.rstrip(" 12")]
        elif entry["class_type"] == "DreamTunerStoryboard":
            inputs.update(prompts=STORY, always="")
        elif entry["class_type"] == "CLIPVisionLoader":
            del graph[key]  # the mini base's encoder contains its own tower
    for title, values in {
        "Load Checkpoint": {"ckpt_name": CHECKPOINT.name},
        "Load Subject Encoder": {"subject_encoder": ENCODER.name},
        "Load ControlNet Model": {"control_net_name": shipped.CONTROL},
        "Apply Subject Encoder": {"strength": 0.2},
        "Subject Tuning": {"class_word": THING, "name": NAME},
    }.items():
        for entry in graph.values():
            if entry["_meta"]["title"] == title:
                entry["inputs"].update(values)
    for entry in graph.values():
        entry["inputs"] = {k: v for k, v in entry["inputs"].items() if not isinstance(v, list) or v[0] in graph}
    if name == "two_subjects":
        node(graph, "Prompt")["text"] = WIDE
        for entry in graph.values():  # the mini base was trained on wide pictures of two squares
            if "width" in entry["inputs"]:
                entry["inputs"]["width"] = entry["inputs"]["width"] * 4 // 3
    elif "tun" in name:
        node(graph, "Prompt")["text"] = TUNED
    return graph


def draw_card(server: ComfyServer, name: str, options: argparse.Namespace) -> Image.Image:
    """Run the workflow (file name without its ending) and lay out its card."""
    from lab.card import card, four

    given = pictures(options.individual)
    graph = fitted(server, name[3:], given, options.steps, options.seed)
    if "Subject Tuning" in (entry["_meta"]["title"] for entry in graph.values()):
        node(graph, "Subject Tuning")["steps"] = options.tuning_steps
    made = run(server, graph)
    corner = [given[e["_meta"]["title"]] for e in graph.values() if e["class_type"] == "LoadImage"]
    return card(made[0] if len(made) < 4 else four(made), *(corner or [given["Reference picture"]]))


def run(server: ComfyServer, graph: Graph) -> list[Image.Image]:
    """The pictures of the graph's last Save Image. A saved subject is saved before it is loaded."""
    loads = [key for key, entry in graph.items() if entry["class_type"] == "DreamTunerLoadSubject"]
    if loads and "Save Subject" in (entry["_meta"]["title"] for entry in graph.values()):
        server.queue(_before(graph, "Save Subject"))
    saves = [key for key, entry in graph.items() if entry["class_type"] == "SaveImage"]
    return server.images(server.queue(graph, timeout=3600), saves[-1])


def _before(graph: Graph, title: str) -> Graph:
    """The node with that title and all nodes that it needs."""
    needed, ahead = {}, [node_id(graph, title)]
    while ahead:
        key = ahead.pop()
        needed[key] = graph[key]
        ahead += [value[0] for value in graph[key]["inputs"].values() if isinstance(value, list)]
    return needed


def _saved(picture: Image.Image, title: str) -> Path:
    path = HOME / "cards" / f"{title.lower().replace(' ', '_')}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path
