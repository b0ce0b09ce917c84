"""The notes of the shipped workflows and the hints, which the page shows in its language (web/dreamtuner.js)."""

import json
from pathlib import Path

import pytest

from dreamtuner_core.picture.hints import NOTES

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
LANGUAGES = sorted({folder.name for folder in (ROOT / "locales").iterdir()} - {"en"})


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_workflow_has_a_note_by_its_own_name(path: Path) -> None:
    notes = [node for node in json.loads(path.read_text())["nodes"] if node["type"] == "MarkdownNote"]
    assert [note["properties"]["dreamtuner_note"] for note in notes] == [path.stem]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_note_is_there_in_every_language(language: str) -> None:
    notes = json.loads((ROOT / "web" / "notes" / f"{language}.json").read_text())
    assert sorted(notes) == [path.stem for path in WORKFLOWS]
    assert all(note.startswith("### ") for note in notes.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_hint_is_there_in_every_language(language: str) -> None:
    told = json.loads((ROOT / "web" / "hints" / f"{language}.json").read_text())
    assert list(told) == list(NOTES)
    assert all(told.values())
