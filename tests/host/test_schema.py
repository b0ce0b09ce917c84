"""What each host's page is told beyond the inputs: what to fold away, and what a search finds."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from comfy_api.latest import io
from dreamtuner_pack.nodes import common
from dreamtuner_pack.nodes.reference_guidance import ReferenceGuidance
from dreamtuner_pack.nodes.subject_tuning import SubjectTuning


@pytest.mark.parametrize(("node", "folded"), [(SubjectTuning, 14), (ReferenceGuidance, 2)])
def test_advanced_inputs_are_marked_for_the_page(node: type[io.ComfyNode], folded: int) -> None:
    inputs = node.INPUT_TYPES()
    told = {name: more for group in inputs.values() for name, (_, *more) in group.items()}
    marked = [name for name, more in told.items() if more and more[0].get("advanced")]
    assert len(marked) == folded
    assert "steps" not in marked


def test_search_words_are_given_to_hosts_that_know_them(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Newer:
        node_id: str
        search_aliases: list[str]

    @dataclass
    class Older:
        node_id: str

    for host, expected in ((Newer, Newer("X", ["a"])), (Older, Older("X"))):
        monkeypatch.setattr(common.io, "Schema", host)
        assert common.schema(node_id="X", search_aliases=["a"]) == expected
