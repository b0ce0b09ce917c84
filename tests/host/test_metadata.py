"""What is noted of a picture, whatever a caller sent as graph and page."""

from __future__ import annotations

from typing import Any

import pytest
from dreamtuner_pack.dreamtuner_core.host.metadata import note_on_node, note_with_pictures
from dreamtuner_pack.dreamtuner_core.host.scoring.score import tell_figures
from dreamtuner_pack.dreamtuner_core.scoring.gate import Gate
from dreamtuner_pack.dreamtuner_core.scoring.scores import Limits


@pytest.mark.parametrize("meta", [None, "x", [], 3, {"title": "a"}])
def test_a_node_is_noted_whatever_stood_there(meta: Any) -> None:
    node = {"inputs": {}, "_meta": meta}
    note_on_node(node, "key", ["told"])
    assert node["_meta"] == (meta if isinstance(meta, dict) else {}) | {"key": ["told"]}
    for nothing in (None, [], "x"):
        note_on_node(nothing, "key", "told")


@pytest.mark.parametrize("known", [None, "x", {}, [{"a": 1}]])
def test_each_thing_is_noted_once_beside_the_pages_own(known: Any) -> None:
    page = {"workflow": {}, "key": known}
    for _ in range(2):
        note_with_pictures(page, "key", [{"b": 2}])
    assert page == {"workflow": {}, "key": (known if isinstance(known, list) else []) + [{"b": 2}]}
    for nothing in (None, [], "x"):
        note_with_pictures(nothing, "key", [{}])


@pytest.mark.parametrize("prompt", [None, [], "x", {}, {"1": None}, {"1": {"_meta": None}}, {"1": {"_meta": []}}])
def test_figures_are_told_to_any_graph(prompt: Any) -> None:
    for page in (None, {}, {"dreamtuner_scores": "x"}):
        tell_figures(Gate([], Limits(), "keys"), [], prompt, "1", page)
