"""A file is written whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dreamtuner_core.files import write_whole


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_what_fails_half_way_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, lambda unfinished: unfinished.write_bytes(b"before"))

    def write(unfinished: Path) -> None:
        unfinished.write_bytes(b"half")
        assert path.read_bytes() == b"before"
        raise error

    with pytest.raises(type(error)):
        write_whole(path, write)
    assert path.read_bytes() == b"before"
    assert [found.name for found in tmp_path.iterdir()] == ["a.bin"]
    write_whole(path, lambda unfinished: unfinished.write_bytes(b"after"))
    assert path.read_bytes() == b"after"


def test_a_folder_that_cannot_be_written_is_told_and_nothing_stays(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "none" / "a.bin", lambda unfinished: unfinished.write_bytes(b""))
    assert not list(tmp_path.iterdir())


def test_others_may_read_it_as_any_file(tmp_path: Path) -> None:
    """safetensors 0.8 writes files that only their owner may read."""
    (tmp_path / "plain").touch()
    write_whole(tmp_path / "a.safetensors", lambda unfinished: save_file({"a": torch.zeros(2)}, unfinished))
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
