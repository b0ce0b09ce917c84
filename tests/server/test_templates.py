"""Every shipped workflow, as a newcomer runs it: pictures put in, a checkpoint chosen, Run. (Tuning: test_tuning.)"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lab.cards import fitted, names, pictures, run, server
from lab.server import ComfyServer

STEPS = 2
NAMES = [name for name in names() if "tun" not in name]


@pytest.fixture(scope="module")
def running() -> Iterator[ComfyServer]:
    with server() as running:
        yield running


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    return pictures()


@pytest.mark.parametrize("name", NAMES)
def test_workflow_draws(running: ComfyServer, given: dict[str, Any], name: str) -> None:
    made = run(running, fitted(running, name[3:], given, STEPS))
    assert made
    for picture in made:
        assert np.asarray(picture).std() > 5, "the picture is blank"
