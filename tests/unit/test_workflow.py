"""lab/workflow.py: what the page's own export gives, without the page. (On the shipped file: tests/server.)"""

import copy
from typing import Any

import pytest

from lab.workflow import WorkflowError, api_form, node, without

INFO: dict[str, Any] = {
    "Load": {
        "display_name": "Load it",
        "input": {"required": {"image": [["a.png", "b.png"], {"image_upload": True}]}},
        "output": ["MODEL", "IMAGE"],
    },
    "Patch": {
        "display_name": "Patch it",
        "input": {
            "required": {"model": ["MODEL"], "weight": ["FLOAT", {}]},
            "optional": {"mask": ["MASK"], "marks": ["COMBO", {"options": ["x", "y"]}]},
        },
        "output": ["MODEL"],
    },
    "Sample": {
        "display_name": "Sample it",
        "input": {"required": {"model": ["MODEL"], "seed": ["INT", {}], "steps": ["INT", {}]}},
        "output": ["IMAGE"],
    },
}
WORKFLOW: dict[str, Any] = {
    "nodes": [
        {"id": 1, "type": "Load", "widgets_values": ["b.png", "image"]},
        {"id": 2, "type": "Patch", "inputs": [{"name": "model"}, {"name": "mask"}], "widgets_values": [0.5, "y"]},
        {"id": 3, "type": "Sample", "inputs": [{"name": "model"}], "widgets_values": [7, "fixed", 20], "title": "Draw"},
        {"id": 4, "type": "MarkdownNote", "widgets_values": ["Read me"]},
    ],
    "links": [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "MODEL"]],
}


def test_values_get_their_names() -> None:
    graph = api_form(WORKFLOW, INFO)
    assert {key: entry["inputs"] for key, entry in graph.items()} == {
        "1": {"image": "b.png"},
        "2": {"weight": 0.5, "marks": "y", "model": ["1", 0]},
        "3": {"seed": 7, "steps": 20, "model": ["2", 0]},
    }
    assert [entry["_meta"]["title"] for entry in graph.values()] == ["Load it", "Patch it", "Draw"]


def test_without_wires_past() -> None:
    graph = api_form(WORKFLOW, INFO)
    shorter = without(graph, "Patch")
    assert set(shorter) == {"1", "3"}
    assert node(shorter, "Draw")["model"] == ["1", 0]
    assert node(graph, "Draw")["model"] == ["2", 0], "the graph given is left as it was"


def test_a_widget_newer_than_the_workflow_has_its_default() -> None:
    older = copy.deepcopy(WORKFLOW)
    older["nodes"][1]["widgets_values"] = [0.5]
    assert node(api_form(older, INFO), "Patch it") == {"weight": 0.5, "model": ["1", 0]}


def test_muted_nodes_are_left_out_or_switched_on() -> None:
    muted = copy.deepcopy(WORKFLOW)
    muted["nodes"][2]["mode"] = 2
    assert set(api_form(muted, INFO)) == {"1", "2"}
    assert api_form(muted, INFO, muted=True) == api_form(WORKFLOW, INFO)


def test_bypassed_nodes_are_wired_past_or_switched_on() -> None:
    bypassed = copy.deepcopy(WORKFLOW)
    inputs = [{"name": "mask", "type": "MASK"}, {"name": "model", "type": "MODEL"}]
    bypassed["nodes"][1] |= {"mode": 4, "inputs": inputs, "outputs": [{"name": "model", "type": "MODEL"}]}
    bypassed["links"][0][4] = 1
    assert api_form(bypassed, INFO) == without(api_form(WORKFLOW, INFO), "Patch")
    assert set(api_form(bypassed, INFO, bypassed=True)) == {"1", "2", "3"}
    del bypassed["links"][0]
    with pytest.raises(WorkflowError, match=r"Node 2 \(Patch\) is bypassed, but has no input to use"):
        api_form(bypassed, INFO)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("nodes", 0, "type"), "Gone", "no node 'Gone'"),
        (("nodes", 1, "widgets_values"), [], "no value for its widget 'weight'"),
        (("nodes", 1, "widgets_values"), [0.5, "y", 3], "values without a widget"),
        (("nodes", 1, "inputs", 0, "name"), "models", "no input 'models'"),
        (("links", 0, 2), 1, "not a MODEL"),
        (("links", 0, 2), 5, "not a MODEL"),
    ],
)
def test_what_does_not_fit_is_told(path: tuple[Any, ...], value: Any, sentence: str) -> None:
    workflow = copy.deepcopy(WORKFLOW)
    *way, last = path
    place: Any = workflow
    for step in way:
        place = place[step]
    place[last] = value
    with pytest.raises(WorkflowError, match=sentence):
        api_form(workflow, INFO)
