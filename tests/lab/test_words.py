"""What an artist reads: every node and input has its words in every language, and a help page."""

import asyncio
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lab.host import ROOT

LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())
TRANSLATED = [language for language in LANGUAGES if language != "en"]  # English is the schema's own


@pytest.fixture(scope="module")
def schemas(pack: ModuleType) -> list[Any]:
    extension = asyncio.run(pack.comfy_entrypoint())
    return [node.define_schema() for node in asyncio.run(extension.get_node_list())]


def words(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", TRANSLATED)
def test_every_node_is_translated(language: str, schemas: list[Any]) -> None:
    told = words(language)
    assert set(told) == {schema.node_id for schema in schemas}
    for schema in schemas:
        node = told[schema.node_id]
        assert node["display_name"]
        assert node["description"]
        assert set(node["inputs"]) == {i.id for i in schema.inputs}
        assert list(node["outputs"]) == [str(n) for n in range(len(schema.outputs))]
        for given in schema.inputs:
            assert node["inputs"][given.id]["name"]
            assert bool(node["inputs"][given.id].get("tooltip")) == bool(given.tooltip), given.id


def test_the_host_finds_them(host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(host), *sys.path])
    import folder_paths
    from app.custom_node_manager import CustomNodeManager

    (tmp_path / "DreamTuner").symlink_to(ROOT, target_is_directory=True)
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda kind: [str(tmp_path)])
    found = CustomNodeManager().build_translations()
    for language in LANGUAGES:
        if language in TRANSLATED:
            assert found[language]["nodeDefs"] == words(language)
        assert found[language]["dataTypes"]["DREAMTUNER_SUBJECT"]


def test_every_node_has_a_help_page(schemas: list[Any]) -> None:
    for schema in schemas:
        page = (ROOT / "web" / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {schema.display_name}\n")
        assert [i.id for i in schema.inputs if f"`{i.id}`" not in page] == []
