"""Every shipped workflow, as a newcomer runs it: the host's example picture, a checkpoint chosen, Run.

(Tuning: test_tuning_graph.)
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lab.cards import fitted, names, pictures, run, server
from lab.inside import host_tree
from lab.server import ComfyServer
from lab.workflow import NOTES, WORKFLOWS, api_form, load, needs

STEPS = 2
NAMES = [name for name in names() if "tun" not in name]


@pytest.fixture(scope="module")
def running() -> Iterator[ComfyServer]:
    with server() as running:
        yield running


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    """The host's own example.png for each reference; what a workflow draws in or from is made up."""
    made = pictures()
    example = Image.open(host_tree() / "input" / "example.png")
    return {title: example if title.startswith("Reference picture") else picture for title, picture in made.items()}


@pytest.mark.parametrize("name", NAMES)
def test_workflow_draws(running: ComfyServer, given: dict[str, Any], name: str) -> None:
    made = run(running, fitted(running, name[3:], given, STEPS))
    assert made
    for picture in made:
        assert np.asarray(picture).std() > 5, "the picture is blank"


@pytest.mark.parametrize("name", sorted(path.stem for path in WORKFLOWS.glob("*.json") if needs(path)))
def test_workflow_of_another_packs_nodes_fits_them(running: ComfyServer, name: str) -> None:
    """It is not drawn, for the mini base has no motion model; a host with that pack checks its nodes and sockets."""
    info = running.object_info()
    if absent := {of["type"] for of in load(name[3:])["nodes"]} - {*info, *NOTES}:
        pytest.skip(f"this host lacks {needs(WORKFLOWS / f'{name}.json')}: {', '.join(sorted(absent))}")
    assert api_form(load(name[3:]), info)
