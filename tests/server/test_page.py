"""What the page shows beside the graph: the nodes in the artist's language, and a help page for each."""

import json
from typing import Any

import pytest

from lab.host import ROOT
from lab.server import ComfyServer

LANGUAGES = sorted(folder.name for folder in (ROOT / "locales").iterdir())


@pytest.fixture(scope="module")
def ours(server: ComfyServer) -> dict[str, Any]:
    """The pack's nodes as the server lists them."""
    return {name: info for name, info in server.object_info().items() if name.startswith("DreamTuner")}


def test_every_node_has_a_help_page(server: ComfyServer, ours: dict[str, Any]) -> None:
    for name in ours:
        page = server.get(f"/extensions/DreamTuner/docs/{name}.md").decode()
        assert page.startswith(f"# {ours[name]['display_name']}"), name


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_is_told_in_every_language(server: ComfyServer, ours: dict[str, Any], language: str) -> None:
    told = server.get_json("/i18n")[language]["nodeDefs"]
    for name, info in ours.items():
        inputs = {key for kind in ("required", "optional") for key in info["input"].get(kind, {})}
        assert set(told[name]["inputs"]) == inputs, name
        assert told[name]["display_name"], name
        assert told[name]["description"], name


def test_english_is_what_the_nodes_say(server: ComfyServer, ours: dict[str, Any]) -> None:
    told = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text())
    for name, info in ours.items():
        assert told[name]["display_name"] == info["display_name"]
        assert told[name]["description"] == info["description"]
        for kind in ("required", "optional"):
            for key, (_, *options) in info["input"].get(kind, {}).items():
                tooltip = options[0].get("tooltip") if options else None
                assert told[name]["inputs"][key].get("tooltip") == tooltip, f"{name}.{key}"
