"""The main job, as an artist's browser does it: the shipped workflow queued on a real server with the pack in it."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lab import workflow
from lab.client import GraphRefused, Interrupted, NodeFailed
from lab.demo import GUIDANCE, S_S_A, SIDE, demo_graph, with_encoder
from lab.host import ROOT
from lab.inside import host_tree
from lab.server import ComfyServer
from lab.workflow import Graph, node, node_id, without

STEPS, SEED = 4, 7
ENCODE = "DreamTunerEncodeSubjectImage"

Run = Callable[[Graph], np.ndarray]


def reference(path: Path, alpha: bool = True) -> Path:
    """A red disc on nothing (or on green), off the middle of a picture that is not square."""
    picture = Image.new("RGBA", (150, 100), (0, 160, 60, 0 if alpha else 255))
    ImageDraw.Draw(picture).ellipse((70, 20, 120, 70), fill=(210, 30, 50, 255), outline=(30, 10, 90, 255), width=6)
    (picture if alpha else picture.convert("RGB")).save(path)
    return path


@pytest.fixture(scope="module")
def whole(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The shipped workflow, on the mini base; copy it before changing it."""
    path = reference(tmp_path_factory.mktemp("reference") / "disc.png")
    graph = demo_graph(server, path, "a teapot, on white", "a teapot, on grass", SEED, STEPS)
    node(graph, "Reference Guidance")["reference_probability"] = 0.5  # so that few steps hold some of both kinds
    return graph


@pytest.fixture(scope="module")
def run(server: ComfyServer) -> Run:
    def picture(graph: Graph) -> np.ndarray:
        return np.asarray(server.images(server.queue(graph), node_id(graph, "Save Image"))[0])

    return picture


@pytest.fixture(scope="module")
def plain(whole: Graph, run: Run) -> np.ndarray:
    """The picture without the pack, made first: what every removal must give back."""
    return run(without(whole, GUIDANCE, S_S_A))


def test_nodes_are_listed(server: ComfyServer) -> None:
    info = server.object_info()
    assert {ENCODE, S_S_A, GUIDANCE} <= set(info)
    assert info[S_S_A]["display_name"] == "Apply Self-Subject Attention"
    assert info[ENCODE]["output"] == ["DREAMTUNER_SUBJECT", "IMAGE"]


def test_workflow_is_offered(server: ComfyServer) -> None:
    assert "01_one_picture" in server.get_json("/workflow_templates")["DreamTuner"]


@pytest.mark.parametrize("path", sorted(workflow.WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def test_workflow_fits_the_nodes(server: ComfyServer, path: Path) -> None:
    shipped, info = workflow.load(path.stem[3:]), server.object_info()
    pack = workflow.needs(path)
    if pack is not None and any(n["type"] not in info for n in shipped["nodes"] if n["type"].startswith("ADE_")):
        pytest.skip(f"{pack} is not there")
    assert workflow.api_form(shipped, info, muted=True)


def test_main_job(whole: Graph, run: Run, plain: np.ndarray) -> None:
    with_subject, with_guidance = run(without(whole, GUIDANCE)), run(whole)
    for picture in (plain, with_subject, with_guidance):
        assert picture.shape == (SIDE, SIDE, 3)
        assert picture.std() > 5, "the picture is blank"
    assert difference(with_subject, plain) > 1
    assert difference(with_guidance, plain) > 1
    assert difference(with_guidance, with_subject) > 0.1


def test_same_seed_same_picture(server: ComfyServer, whole: Graph, run: Run) -> None:
    first = run(whole)
    server.free()  # drops the cached outputs, so that the second run computes everything again
    np.testing.assert_array_equal(run(whole), first)


def test_preview_shows_the_subject_on_white(server: ComfyServer, whole: Graph) -> None:
    result = server.queue(without(whole, GUIDANCE))
    seen = np.asarray(server.images(result, node_id(whole, "What the method sees"))[0])
    assert seen.shape == (SIDE, 4 * SIDE, 3)  # the picture as it came (3:2), the subject, what is left out
    assert (seen[0, 3 * SIDE // 2] > 250).all(), "the background is white"
    assert np.abs(seen[SIDE // 2, 2 * SIDE].astype(int) - (210, 30, 50)).max() < 12, "the disc is in the middle"


def test_progress_is_reported(server: ComfyServer, whole: Graph) -> None:
    graph = deepcopy(without(whole, GUIDANCE))
    node(graph, "KSampler")["seed"] = SEED + 1
    seen: list[tuple[str, int, int]] = []
    server.queue(graph, lambda *event: seen.append(event))
    sampler = node_id(graph, "KSampler")
    told = [done for at, done, steps in seen if at == sampler and steps == STEPS]
    assert told == sorted(set(told))  # newer hosts leave out what comes too quickly
    assert told[-1] == STEPS


def test_weight_zero_is_absence(whole: Graph, run: Run, plain: np.ndarray) -> None:
    graph = deepcopy(whole)
    node(graph, "Apply Self-Subject Attention")["reference_weight"] = 0.0
    np.testing.assert_array_equal(run(without(graph, GUIDANCE)), plain)
    np.testing.assert_array_equal(run(graph), plain)


def test_subject_encoder_shows_and_its_strength_zero_is_absence(whole: Graph, run: Run) -> None:
    plain = without(whole, GUIDANCE)
    encoded = with_encoder(plain)
    assert difference(run(encoded), run(plain)) > 0.5
    node(encoded, "Apply Subject Encoder")["strength"] = 0.0
    np.testing.assert_array_equal(run(encoded), run(plain))


def test_removal_leaves_nothing(whole: Graph, run: Run, plain: np.ndarray) -> None:
    run(whole)
    without_pack = without(whole, GUIDANCE, S_S_A)
    node(without_pack, "KSampler")["seed"] = SEED + 2  # lest the host answers from its cache below
    run(without_pack)
    node(without_pack, "KSampler")["seed"] = SEED
    np.testing.assert_array_equal(run(without_pack), plain)


def test_interrupt_leaves_nothing(server: ComfyServer, whole: Graph, run: Run, plain: np.ndarray) -> None:
    graph = deepcopy(whole)
    node(graph, "KSampler").update(seed=SEED + 3, steps=60)

    told: list[int] = []

    def stop_early(at: str, done: int, steps: int) -> None:
        if steps == 60 and done >= 2:
            told.append(done)
            if len(told) == 1:
                threading.Thread(target=server.interrupt).start()

    with pytest.raises(Interrupted):
        server.queue(graph, stop_early)
    assert told[-1] < 60
    server.free()
    np.testing.assert_array_equal(run(without(whole, GUIDANCE, S_S_A)), plain)


def test_an_opaque_picture_draws_and_says_that_the_subject_was_found(
    server: ComfyServer, whole: Graph, tmp_path: Path
) -> None:
    """LoadImage gives an all-black mask for a picture without transparency."""
    graph = deepcopy(whole)
    node(graph, "Reference picture")["image"] = server.upload_image(reference(tmp_path / "opaque.png", alpha=False))
    result = server.queue(graph)
    assert result.outputs[node_id(graph, "Encode Subject Image")]["dreamtuner_notes"][0] == "found"
    assert server.images(result, node_id(graph, "Save Image"))


def test_a_painted_mask_that_is_empty_is_told_to_the_artist(server: ComfyServer, whole: Graph, tmp_path: Path) -> None:
    graph = deepcopy(whole)
    path = reference(tmp_path / "empty.png", alpha=False)
    Image.open(path).convert("RGBA").save(path)  # an alpha of its own size, and nothing of it transparent
    node(graph, "Reference picture")["image"] = server.upload_image(path)
    with pytest.raises(NodeFailed, match=r"mask.*(empty|black)") as failure:
        server.queue(graph)
    assert failure.value.node_type == ENCODE
    assert len(failure.value.message.splitlines()) == 1


def test_start_after_end_is_told_to_the_artist(server: ComfyServer, whole: Graph) -> None:
    graph = deepcopy(whole)
    node(graph, "Apply Self-Subject Attention").update(start_percent=0.8, end_percent=0.2)
    with pytest.raises(NodeFailed, match="start_percent") as failure:
        server.queue(graph)
    assert failure.value.node_type == S_S_A


def test_absurd_weight_is_refused_before_the_run(server: ComfyServer, whole: Graph) -> None:
    graph = deepcopy(whole)
    node(graph, "Apply Self-Subject Attention")["reference_weight"] = 1e9
    with pytest.raises(GraphRefused, match="reference_weight"):
        server.queue(graph)


def test_server_is_stopped_after_an_error() -> None:
    other = ComfyServer(host_tree(), pack=False)
    pids: list[int] = []

    def fail() -> None:
        with other:
            assert other.process is not None
            pids.append(other.process.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not runs(pids[0])
    assert not other.base.exists()
    assert not other.log.exists()


STARTER = """
import sys, time
from pathlib import Path
from lab.server import ComfyServer
with ComfyServer(Path(sys.argv[1]), pack=False) as server:
    print(server.process.pid, flush=True)
    time.sleep(600)
"""


def test_server_ends_with_a_killed_starter() -> None:
    command = [sys.executable, "-c", STARTER, str(host_tree())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        server_pid = int(starter.stdout.readline())
        starter.kill()
    end = time.monotonic() + 10
    while runs(server_pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not runs(server_pid)


def runs(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in levels of 255."""
    return float(np.abs(a.astype(float) - b).mean())
