"""Subject tuning as an artist's browser does it: the shipped workflows on a real server, with the mini base."""

import io
import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors import safe_open

from lab import workflow
from lab.client import NodeFailed
from lab.demo import CHECKPOINT, FAMILY, SIDE
from lab.inside import host_tree
from lab.mini import shipped
from lab.server import ComfyServer
from lab.workflow import Graph, node, node_id, without

NAME, STEPS = "blue_teapot", 2
S_S_A = "DreamTunerApplySelfSubjectAttention"
OWNER = "Ada Lovelace"


@pytest.fixture(scope="module")
def server() -> Iterator[ComfyServer]:
    """A server of its own: the shared one writes no metadata into its pictures."""
    if not CHECKPOINT.is_file():
        pytest.skip("the mini base is not in this checkout")
    control = CHECKPOINT.with_name(shipped.CONTROL)
    models = {"checkpoints": [CHECKPOINT], "controlnet": [control], "loras": [], "embeddings": []}
    with ComfyServer(host_tree(), custom_nodes=[FAMILY], models=models) as running:
        yield running


def fitted(graph: Graph) -> Graph:
    """To the mini base, and to little work."""
    node(graph, "Load Checkpoint")["ckpt_name"] = CHECKPOINT.name
    node(graph, "Empty Latent Image").update(width=SIDE, height=SIDE)
    node(graph, "KSampler").update(steps=2, seed=5)
    node(graph, "Prompt")["text"] = f"a teapot embedding:{NAME}, on grass"
    node(graph, "Negative prompt")["text"] = ""
    return graph


@pytest.fixture(scope="module")
def tuning(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    path = tmp_path_factory.mktemp("reference") / "disc.png"
    picture = Image.new("RGBA", (150, 100))
    ImageDraw.Draw(picture).ellipse((70, 20, 120, 70), fill=(210, 30, 50, 255))
    picture.save(path)
    graph = fitted(workflow.api_form(workflow.load("subject_tuning"), server.object_info()))
    node(graph, "Reference picture")["image"] = server.upload_image(path)
    node(graph, "Caption of the reference")["text"] = "a teapot, on white"
    node(graph, "Encode Subject Image")["resolution"] = SIDE
    node(graph, "Subject Tuning").update(class_word="teapot", name=NAME, steps=STEPS, regular_pictures=1)
    node(graph, "Save Subject").update(name=NAME, owner=OWNER)
    return graph


@pytest.fixture(scope="module")
def tuned(server: ComfyServer, tuning: Graph) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """The report, the picture, and the tuning node's progress."""
    progress: list[tuple[int, int]] = []
    at = node_id(tuning, "Subject Tuning")

    def note(node_id: str, done: int, of: int) -> None:
        if node_id == at and of:
            progress.append((done, of))

    result = server.queue(tuning, note)
    report, picture = (server.images(result, node_id(tuning, title))[0] for title in ("Report", "Save Image"))
    return np.asarray(report), np.asarray(picture), progress


def test_report_and_progress_come_out(tuned: tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]) -> None:
    report, picture, progress = tuned
    assert report.shape[1] == 768
    assert picture.shape == (SIDE, SIDE, 3)
    assert progress[-1][0] == progress[-1][1]
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)


def test_files_are_where_the_host_looks(server: ComfyServer, tuned: object) -> None:
    info = server.object_info()
    assert f"{NAME}.safetensors" in info["LoraLoader"]["input"]["required"]["lora_name"][0]
    assert f"{NAME}.safetensors" in info["DreamTunerLoadSubject"]["input"]["required"]["file"][1]["options"]
    assert NAME in server.get_json("/embeddings")
    assert not list(server.base.rglob("*.unfinished"))
    with safe_open(server.base / "models" / "loras" / f"{NAME}.safetensors", "pt") as file:
        assert "dreamtuner.tuning" in file.metadata()


def test_stock_nodes_make_the_same_picture(
    server: ComfyServer, tuned: tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]
) -> None:
    """The shipped workflow for a tuned subject, its self-subject attention taken out: stock nodes alone draw it."""
    graph = fitted(workflow.api_form(workflow.load("tuned_subject"), server.object_info()))
    node(graph, "Load LoRA")["lora_name"] = f"{NAME}.safetensors"
    node(graph, "Load Subject")["file"] = f"{NAME}.safetensors"
    stock = without(graph, S_S_A)
    del stock[node_id(stock, "Load Subject")]
    np.testing.assert_array_equal(server.images(server.queue(stock), node_id(stock, "Save Image"))[0], tuned[1])

    at = node_id(graph, "Save Image")
    for seed in (node(graph, "KSampler")["seed"], 99):  # the second time Load Subject is answered from the cache
        node(graph, "KSampler")["seed"] = seed
        result = server.queue(graph)
        assert not np.array_equal(server.images(result, at)[0], tuned[1]), "the loaded subject is looked at"
        saved = Image.open(io.BytesIO(server.image_bytes(result.outputs[at]["images"][0])))
        told = json.loads(saved.info["prompt"])[node_id(graph, "Load Subject")]["_meta"]["dreamtuner_subjects"]
        assert (told["subject"], told["owner"]) == (NAME, OWNER)


def test_the_workflow_with_a_layout_draws_it(server: ComfyServer, tuned: object, tmp_path: Path) -> None:
    graph = fitted(workflow.api_form(workflow.load("tuned_subject_with_controlnet"), server.object_info()))
    layout = Image.new("RGB", (SIDE, SIDE))
    ImageDraw.Draw(layout).ellipse((20, 20, 100, 100), fill="white")
    layout.save(tmp_path / "layout.png")
    node(graph, "Layout")["image"] = server.upload_image(tmp_path / "layout.png")
    node(graph, "Load ControlNet Model")["control_net_name"] = shipped.CONTROL
    node(graph, "Load LoRA")["lora_name"] = node(graph, "Load Subject")["file"] = f"{NAME}.safetensors"
    drawn = np.asarray(server.images(server.queue(graph), node_id(graph, "Save Image"))[0])
    assert drawn.shape == (SIDE, SIDE, 3)
    node(graph, "Apply ControlNet")["strength"] = 0.0
    without_layout = np.asarray(server.images(server.queue(graph), node_id(graph, "Save Image"))[0])
    assert not np.array_equal(drawn, without_layout)


def test_unchanged_inputs_never_train_again(server: ComfyServer, tuning: Graph, tuned: object) -> None:
    """Neither from the host's cache nor, that emptied, from disk."""
    lora = server.base / "models" / "loras" / f"{NAME}.safetensors"
    before = lora.stat().st_mtime_ns
    server.free()
    graph = deepcopy(tuning)
    node(graph, "KSampler")["seed"] = 6
    server.queue(graph)
    assert lora.stat().st_mtime_ns == before


def test_bad_names_are_told_to_the_artist(server: ComfyServer, tuning: Graph) -> None:
    graph = deepcopy(tuning)
    node(graph, "Subject Tuning")["name"] = "../x"
    with pytest.raises(NodeFailed, match=r"Subject Tuning: the name '\.\./x'") as failure:
        server.queue(graph)
    assert len(failure.value.message.splitlines()) == 1
    assert not list(Path(server.base).rglob("x.safetensors"))
