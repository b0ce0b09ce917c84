"""Where the host finds this pack's files."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
from dreamtuner_pack.dreamtuner_core.host.files import ModelFolder


def test_another_packs_folder_is_read_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """models/ipadapter, and wherever else that pack's files lie."""
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {"theirs": ([str(elsewhere)], set())})
    for folder, file in ((tmp_path / "ours", "a"), (tmp_path / "theirs", "b"), (elsewhere, "c")):
        folder.mkdir()
        (folder / f"{file}.safetensors").touch()
    ours = ModelFolder("ours", also=("theirs",))
    assert sorted(ours.files()) == ["a.safetensors", "b.safetensors", "c.safetensors"]
    assert ours.path("c.safetensors") == elsewhere / "c.safetensors"
    assert ours.folders()[0] == tmp_path / "ours"
    assert ModelFolder("theirs").folders() == [elsewhere, tmp_path / "theirs"], "their own list is as it was"
