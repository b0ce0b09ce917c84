"""The shipped workflows as they lie in the page."""

import json
from pathlib import Path
from typing import Any

import pytest

from lab.workflow import WORKFLOWS

TITLE = 30  # pixels: the bar above a node's own corner
FILES = sorted(WORKFLOWS.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_node_sticks_out_of_its_group(path: Path) -> None:
    flow = json.loads(path.read_text(encoding="utf-8"))
    for group in flow["groups"]:
        left, top, width, height = group["bounding"]
        frame = (left, top, left + width, top + height)
        for node in flow["nodes"]:
            box = _box(node)
            meets = box[0] < frame[2] and frame[0] < box[2] and box[1] < frame[3] and frame[1] < box[3]
            within = frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]
            assert within or not meets, f"{node['type']} sticks out of {group['title']!r}"


def _box(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom, with the title bar."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height
