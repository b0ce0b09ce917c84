"""The nodes' help pages: the same page in every language (the host's page asks for docs/NODE/LANGUAGE.md first)."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"
PAGES = sorted(DOCS.glob("*.md"))
LANGUAGES = sorted({folder.name for folder in (ROOT / "locales").iterdir()} - {"en"})


def outline(page: str) -> list[str]:
    """The start of each heading and list item, in order: `##`, `-`, `1.`."""
    return re.findall(r"^(#+|-|\d+\.) ", page, re.MULTILINE)


def ids(page: str) -> set[str]:
    """What stands in backticks."""
    return set(re.findall(r"`([^`\n]+)`", page))


def figures(page: str) -> set[str]:
    """What was measured: the numbers such as 0.59 (0,59 in French)."""
    return {figure.replace(",", ".") for figure in re.findall(r"(?<!\d)0[.,]\d\d+", page)}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("english", PAGES, ids=lambda page: page.stem)
def test_every_page_is_the_same_in_every_language(english: Path, language: str) -> None:
    told = english.read_text(encoding="utf-8")
    page = (DOCS / english.stem / f"{language}.md").read_text(encoding="utf-8")
    names = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert page.startswith(f"# {names[english.stem]['display_name']}\n")
    assert outline(page) == outline(told)
    assert ids(page) == ids(told)
    assert figures(page) == figures(told)


def test_no_page_is_of_an_unknown_node_or_language() -> None:
    found = {(page.parent.name, page.name) for page in DOCS.glob("*/*")}
    assert found == {(page.stem, f"{language}.md") for page in PAGES for language in LANGUAGES}


def test_the_registry_package_has_every_page() -> None:
    """The registry's tool leaves out what .comfyignore matches, by the rules of .gitignore."""
    command = ["git", "ls-files", "--cached", "--others", "--ignored", "--exclude-from=.comfyignore"]
    left_out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {path.split("/")[0] for path in left_out if not path.startswith(".")} >= {"docs", "lab", "tests"}
    assert not [path for path in left_out if path.startswith(("web/", "locales/", "nodes/", "workflows/"))]
