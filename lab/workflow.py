"""Workflows: from the UI format that an artist opens to the API format that the server runs.

The shipped files in workflows/ are the only source; the demo and the tests run the graphs made here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from lab.host import ROOT

WORKFLOWS = ROOT / "workflows"
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTES = ("Note", "MarkdownNote")  # exist only in the page, not in the server
MUTED, BYPASSED = 2, 4  # LiteGraph's node modes

Graph = dict[str, dict[str, Any]]


class WorkflowError(ValueError):
    """The workflow does not fit the nodes that the server has."""


def load(name: str) -> dict[str, Any]:
    """A shipped workflow in UI format, by its name without the number."""
    return json.loads(next(WORKFLOWS.glob(f"[0-9][0-9]_{name}.json")).read_text())


def needs(path: Path) -> str | None:
    """The other pack that this shipped workflow needs; None if it needs no other."""
    return json.loads(path.read_text())["extra"].get("needs")


def api_form(
    workflow: Mapping[str, Any], object_info: Mapping[str, Any], muted: bool = False, bypassed: bool = False
) -> Graph:
    """The same as the page's "export (API)". Raises WorkflowError for nodes, inputs or widgets that the server lacks.

    muted, bypassed: whether such nodes are switched on; otherwise they are left out or bypassed, as in the page.
    """
    left_out = () if muted else (MUTED,)
    nodes = {n["id"]: n for n in workflow["nodes"] if n["type"] not in NOTES and n.get("mode", 0) not in left_out}
    graph: Graph = {}
    for node in nodes.values():
        if node["type"] not in object_info:
            raise WorkflowError(f"The server has no node {node['type']!r}.")
        info = object_info[node["type"]]
        graph[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": _widget_values(node, info),
            "_meta": {"title": node.get("title") or info["display_name"]},
        }
    for _, source, slot, target, target_slot, kind in workflow["links"]:
        if source not in nodes or target not in nodes:
            continue
        name = nodes[target]["inputs"][target_slot]["name"]
        outputs = object_info[nodes[source]["type"]]["output"]
        if slot >= len(outputs) or (not isinstance(outputs[slot], list) and kind not in (outputs[slot], "*")):
            raise WorkflowError(f"Output {slot} of {nodes[source]['type']} is not a {kind}.")
        if name not in (known for known, *_ in _inputs(object_info[nodes[target]["type"]])):
            raise WorkflowError(f"{nodes[target]['type']} has no input {name!r}.")
        graph[str(target)]["inputs"][name] = [str(source), slot]
    return graph if bypassed else _past(graph, [n for n in nodes.values() if n.get("mode", 0) == BYPASSED])


def _past(graph: Graph, bypassed: Sequence[Mapping[str, Any]]) -> Graph:
    """Replace each output of these nodes by the link of their first input of the same type."""
    for node in bypassed:
        inputs = graph.pop(str(node["id"]))["inputs"]
        through = [next((i["name"] for i in node["inputs"] if i["type"] == o["type"]), "") for o in node["outputs"]]
        for entry in graph.values():
            for name, value in list(entry["inputs"].items()):
                if isinstance(value, list) and value[0] == str(node["id"]):
                    if (source := inputs.get(through[value[1]])) is None:
                        raise WorkflowError(f"Node {node['id']} ({node['type']}) is bypassed, but has no input to use.")
                    entry["inputs"][name] = source
    return graph


def _inputs(info: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Each input's name, its description by the server, and whether it is optional."""
    for group in ("required", "optional"):
        for name, entry in info["input"].get(group, {}).items():
            yield name, entry, group == "optional"


def _widget_values(node: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """The widgets' values by name; the page stores them by position."""
    values = list(node.get("widgets_values", ()))
    named: dict[str, Any] = {}
    for name, (kind, *rest), optional in _inputs(info):
        options = rest[0] if rest else {}
        if not (isinstance(kind, list) or kind in WIDGET_TYPES) or options.get("forceInput"):
            continue
        if not values and optional:
            break  # a widget newer than the workflow: page and server use its default
        if not values:
            raise WorkflowError(f"Node {node['id']} ({node['type']}) has no value for its widget {name!r}.")
        named[name] = values.pop(0)
        # The page adds a widget of its own after a seed ("fixed", "randomize") and after a picture's name (upload).
        if options.get("control_after_generate", kind == "INT" and name in ("seed", "noise_seed")):
            del values[:1]
        if options.get("image_upload"):
            del values[:1]
    if values:
        raise WorkflowError(f"Node {node['id']} ({node['type']}) has values without a widget: {values}.")
    return named


def node(graph: Graph, title: str) -> dict[str, Any]:
    """The inputs of the one node with this title, to read or change."""
    return graph[node_id(graph, title)]["inputs"]


def node_id(graph: Graph, title: str) -> str:
    found = [key for key, entry in graph.items() if entry["_meta"]["title"] == title]
    if len(found) != 1:
        raise WorkflowError(f"{len(found)} nodes are titled {title!r}; one is expected.")
    return found[0]


def without(graph: Graph, *class_types: str, through: str = "model") -> Graph:
    """The graph without these nodes: their input `through` is linked to the nodes after them."""
    graph = deepcopy(graph)
    for key in [key for key, entry in graph.items() if entry["class_type"] in class_types]:
        source = graph.pop(key)["inputs"][through]
        for entry in graph.values():
            for name, value in entry["inputs"].items():
                if isinstance(value, list) and value[0] == key:
                    entry["inputs"][name] = source
    return graph
