"""Imports run one way: nodes -> dreamtuner_core.host -> the rest of dreamtuner_core; pre-training is a second face."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACK = [p for top in ("nodes", "dreamtuner_core") for p in sorted((ROOT / top).rglob("*.py"))]
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "server"}
FORBIDDEN = {  # of each part, the longest name that fits: what it must not import
    "dreamtuner_core": {"nodes", "lab", "dreamtuner_core.host", "dreamtuner_core.pretraining", *HOST},
    "dreamtuner_core.host": {"nodes", "lab", "dreamtuner_core.pretraining"},
    "dreamtuner_core.pretraining": {"nodes", "lab"},
    "nodes": {"lab", "dreamtuner_core.pretraining"},
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path, everywhere: bool) -> set[str]:
    """The modules that a file imports, in full. everywhere: inside functions and TYPE_CHECKING as well."""
    tree, found = ast.parse(path.read_text()), set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (path.relative_to(ROOT).parts)[: -node.level] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


@pytest.mark.parametrize("path", PACK, ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    part = max((part for part in FORBIDDEN if within(name_of(path), part)), key=len)
    wrong = {name for name in imported(path, everywhere=True) for not_this in FORBIDDEN[part] if within(name, not_this)}
    assert not wrong, f"{name_of(path)} imports {', '.join(sorted(wrong))}"


def test_there_is_no_circle() -> None:
    modules = {name_of(path): path for path in PACK}
    graph = {name: imported(path, everywhere=False) & modules.keys() - {name} for name, path in modules.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_a_relative_import_is_resolved() -> None:
    storyboard = ROOT / "dreamtuner_core" / "host" / "storyboard.py"
    assert "dreamtuner_core.host.apply" in imported(storyboard, everywhere=False)


TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_no_test_imports_a_test(path: Path) -> None:
    """What tests share has a room of its own."""
    assert not [name for name in imported(path, everywhere=True) if name.split(".")[-1].startswith("test_")]


def test_every_file_of_tests_has_a_name_of_its_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith(("conftest", "__"))]
    assert len(names) == len(set(names))
