"""A file is written whole, or not at all."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamtuner_core.files import (
    ABANDONED,
    LARGEST_HEADER,
    LONGEST_JSON,
    UNFINISHED,
    Taken,
    metadata_of_file,
    plain_json,
    read_whole,
    sweep,
    write_all_whole,
    write_whole,
)


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


def test_of_files_that_belong_together_none_is_new_before_all_are(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text("before")

    def fail(unfinished: Path) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError):
        write_all_whole({tmp_path / "a": lambda unfinished: unfinished.write_text("after"), tmp_path / "b": fail})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "before", "b": "before"}


@pytest.mark.parametrize("links", [True, False])
def test_a_name_that_the_system_refuses_leaves_all_files_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """As Windows does for a file that another program has open."""
    names = ("embedding", "encoder", "lora")
    for name in ("embedding", "lora"):
        (tmp_path / name).write_text("before")
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if Path(target).name == "lora":
            raise PermissionError(13, "Access is denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    with pytest.raises(PermissionError):
        write_all_whole({tmp_path / name: lambda unfinished: unfinished.write_text("after") for name in names})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"embedding": "before", "lora": "before"}
    monkeypatch.setattr(Path, "replace", replace)
    write_all_whole({tmp_path / name: lambda unfinished: unfinished.write_text("after") for name in names})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(names, "after")


def no_links(*_: object) -> None:
    raise OSError(95, "Operation not supported")


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_never_replaces_one_that_another_process_wrote_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    path = tmp_path / "a.bin"
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)

    def write(unfinished: Path) -> None:
        unfinished.write_bytes(b"ours")
        path.write_bytes(b"theirs")

    with pytest.raises(Taken):
        write_whole(path, write, new=True)
    assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == {"a.bin": b"theirs"}
    write_whole(tmp_path / "b.bin", lambda unfinished: unfinished.write_bytes(b"ours"), new=True)
    assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == {"a.bin": b"theirs", "b.bin": b"ours"}


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    """By any later write to the folder, whatever the name: the killed one's may never be written again."""
    names = (f".a.bin.{'0' * 16}", f".a.bin.{'1' * 16}", f".b.bin.{'2' * 16}", f".b.bin.{'3' * 16}.before", ".c.bin.1")
    own, under_way, others, before, strange = (tmp_path / f"{name}{UNFINISHED}" for name in names)
    for path in (own, under_way, others, before, strange):
        path.touch()
    for path in (own, others, before, strange):
        os.utime(path, (0, time.time() - ABANDONED - 1))
    write_whole(tmp_path / "a.bin", lambda unfinished: unfinished.write_bytes(b""))
    assert set(tmp_path.iterdir()) == {tmp_path / "a.bin", under_way, strange}
    sweep(tmp_path / "b.bin")
    assert under_way.exists()
    sweep(tmp_path / "a.bin")
    assert set(tmp_path.iterdir()) == {tmp_path / "a.bin", strange}


@pytest.mark.parametrize(("spaces", "fits"), [(0, True), (LARGEST_HEADER, False)])
def test_a_header_is_read_within_bounds(tmp_path: Path, spaces: int, fits: bool) -> None:
    """safetensors itself reads one of up to 100 MB."""
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{"b":"c"}}' + b" " * spaces
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert load_file(path)["a"] == 0
    assert metadata_of_file(path) == ({"b": "c"} if fits else {})
    with nullcontext() if fits else pytest.raises(ValueError, match="is not a complete safetensors file"):
        assert read_whole(path)[1] == {"b": "c"}


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, f'"{"x" * LONGEST_JSON}"', "[1,", "", None])
def test_json_of_a_stranger_is_read_within_bounds(text: str | None) -> None:
    assert plain_json(text) is None
    assert plain_json('{"a": [1]}') == {"a": [1]}
