"""Files of a tuning under faults: mapped, full, taken, shared, deleted, and writers that were killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from dreamtuner_pack.dreamtuner_core.host import files as host_files
from dreamtuner_pack.dreamtuner_core.host.tuning import regular, store
from dreamtuner_pack.dreamtuner_core.host.tuning.files import SETTINGS as KEY
from dreamtuner_pack.dreamtuner_core.host.tuning.files import TuningFiles, regular_folder, settings_of
from dreamtuner_pack.dreamtuner_core.rights import OwnedSubject, Rights
from dreamtuner_pack.dreamtuner_core.tuning.loop import Tuning
from dreamtuner_pack.nodes.subject_tuning import SubjectTuning
from safetensors.torch import load_file, save_file
from tuning_ends import Stop, same, stop_at
from tuning_world import World, folders

pytestmark = pytest.mark.usefixtures("quick_samples")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with folders(tmp_path):
        yield World(tmp_path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- nothing mapped --------------------------------------------------------------------------------------------------


def test_no_file_is_replaced_while_it_is_mapped(world: World) -> None:
    """`folders` refuses it, as Windows does: the first result is still at work when more steps write the files."""
    first = world.tune("grown", steps=2)
    again = world.tune("grown", steps=4)
    world.tune("whole", steps=4)
    assert same(world.loras / "grown.safetensors", world.loras / "whole.safetensors")
    assert (first.subject.steps, again.subject.steps) == (2, 4)


def test_a_result_that_cannot_be_replaced_loses_no_step(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another node of the host has the LoRA mapped."""
    world.tune(steps=2)
    mapped = load_file(world.loras / "rex.safetensors")
    from safetensors import safe_open

    with safe_open(world.loras / "rex.safetensors", "pt") as file:
        mapped = {name: file.get_tensor(name) for name in list(file.keys())}
        with pytest.raises(
            ValueError, match=r"cannot be written; let ComfyUI write there, or end what has the file open"
        ):
            world.tune(steps=4)
    del mapped
    assert settings_of(world.own / "tuning" / "rex" / "state.safetensors")["steps"] == 4
    assert (world.loras / "rex_step4.safetensors").exists(), "usable at once under another name"
    stop_at(monkeypatch, 0)
    monkeypatch.setattr(Tuning, "advance", lambda self: pytest.fail("no step is taken again"))
    assert world.tune(steps=4).subject.steps == 4


# --- saves that fail -------------------------------------------------------------------------------------------------


def test_a_text_that_no_file_takes_never_costs_the_state(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should an odd text come so far after all: the state is written without it."""
    world.subject = OwnedSubject(**vars(world.subject), rights=Rights("Ada"))
    object.__setattr__(world.subject.rights, "owner", "A\ud800da")
    with pytest.raises(ValueError):
        world.tune(steps=2)
    state = world.own / "tuning" / "rex" / "state.safetensors"
    assert settings_of(state)["steps"] == 2
    assert len(load_file(state)["losses"]) == 2


def test_odd_texts_are_refused_where_they_enter() -> None:
    for name in ("owner", "allowed_uses", "until"):
        for odd in ("a\ud800b", "a\x1b[31mb", "a\x00b", 7):
            with pytest.raises(ValueError, match=name):
                Rights(**{name: odd})  # type: ignore[arg-type]
    assert Rights("A\u200dda", "one\r\n\ttwo").allowed_uses, "joiners and lines are letters of some languages"


def test_a_state_that_cannot_be_written_goes_under_another_name(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.tune("whole")
    write, state = store.write, world.own / "tuning" / "rex" / "state.safetensors"

    def held(path: Path, *args: Any) -> None:
        if path == state:
            raise ValueError("tuning/rex/state.safetensors cannot be written")
        write(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", held)
        stop_at(patch, 3)
        with pytest.raises(Stop):
            world.tune()
    assert not state.exists()
    assert "state_spare.safetensors instead" in caplog.text
    world.tune()
    assert same(world.loras / "rex.safetensors", world.loras / "whole.safetensors")
    assert names(state.parent) == ["lock", "state.safetensors"], "the spare goes when the state is written again"


def test_a_full_disk_half_way_costs_no_step(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full while it learns, and room again at its end."""
    world.tune("whole")
    write, calls = store.write, []

    def full(path: Path, tensors: Any, metadata: Any) -> None:
        calls.append(path)
        if len(calls) <= 3:
            raise ValueError("the disk is full")
        write(path, tensors, metadata)

    monkeypatch.setattr(store, "write", full)
    world.tune()
    assert same(world.loras / "rex.safetensors", world.loras / "whole.safetensors")


def test_a_write_that_fails_is_told_by_its_own_cause(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = world.loras / "rex.safetensors"
    for error, wanted in (
        (
            OSError(28, "No space left on device", "/home/ada/x"),
            r"^loras/rex\.safetensors could not be written because the disk is full",
        ),
        (
            OSError(5, "Input/output error", "/home/ada/x"),
            r"^loras/rex\.safetensors could not be written \(Input/output error\)",
        ),
        (PermissionError(13, "denied", "/home/ada/x"), r"^loras/rex\.safetensors cannot be written"),
        (host_files.SafetensorError("I/O error: No space left on device (os error 28)"), "disk is full"),
        (host_files.SafetensorError("I/O error: /home/ada/x: (os error 5)"), r"could not be written \(I/O error"),
    ):

        def fails(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(host_files, "save_file", fails)
        with pytest.raises(ValueError, match=wanted) as refusal:
            host_files.write(path, {}, {})
        assert "/home" not in str(refusal.value)


def test_no_message_names_the_folders_of_this_machine(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.loras / "rex.safetensors").write_bytes(b"somebody else's")
    with pytest.raises(ValueError, match=r"loras/rex\.safetensors") as refusal:
        world.tune()
    assert str(world.base) not in str(refusal.value)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(ValueError, match="disk is full") as refusal:
            world.tune("other", steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(world.base) not in str(refusal.value)


# --- names that are taken --------------------------------------------------------------------------------------------


def test_all_taken_files_are_named_at_once_with_a_free_name(world: World) -> None:
    world.tune(steps=1)
    with pytest.raises(ValueError, match="name 'rex' is taken") as refusal:
        world.tune(steps=1, seed=3)
    for taken in ("loras/rex.safetensors", "embeddings/rex.safetensors", "tuning/rex/state.safetensors"):
        assert taken in str(refusal.value)
    assert "such as 'rex_2'" in str(refusal.value)
    assert world.tune("rex_2", steps=1, seed=3).subject.steps == 1


@pytest.mark.parametrize("kind", ["dead link", "pipe", "folder", "deep json"])
def test_whatever_stands_under_the_name_is_left_alone(world: World, kind: str) -> None:
    path = world.loras / "rex.safetensors"
    if kind == "dead link":
        path.symlink_to(world.base / "unmounted" / "rex.safetensors")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        save_file({"a": torch.zeros(1)}, path, {KEY: "[" * 100_000})
    with pytest.raises(ValueError, match="name 'rex' is taken"):
        world.tune(steps=1)
    assert os.path.lexists(path)


def test_stopped_again_at_that_step_under_other_settings(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for seed in (0, 1):
        with monkeypatch.context() as patch:
            stop_at(patch, 3, comfy.model_management.InterruptProcessingException)
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                world.tune(seed=seed)
        (world.own / "tuning" / "rex" / "state.safetensors").unlink()
    assert names(world.loras) == ["rex_step3.safetensors", "rex_step3_2.safetensors"]
    assert "use loras/rex_step3_2.safetensors" in caplog.text
    seeds = [settings_of(world.loras / name)["config"]["seed"] for name in names(world.loras)]
    assert seeds == [0, 1]


@pytest.mark.parametrize("name", ["CONIN$", "conout$.x", "CLOCK$"])
def test_reserved_names_are_refused(world: World, name: str) -> None:
    with pytest.raises(ValueError, match="device on Windows"):
        world.tune(name)


# --- several at once, and killed -------------------------------------------------------------------------------------


def test_a_name_is_tuned_by_one_at_a_time(world: World) -> None:
    with TuningFiles("rex").locked():
        with pytest.raises(ValueError, match="'rex' is being tuned already"):
            world.tune(steps=1)
        world.tune("other", steps=1)
    world.tune(steps=1)


def test_a_name_taken_while_it_learned_is_not_overwritten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another ComfyUI with a user folder of its own, which no lock reaches."""
    advance = Tuning.advance

    def meanwhile(self: Tuning) -> float:
        (world.loras / "rex.safetensors").write_bytes(b"another's")
        return advance(self)

    monkeypatch.setattr(Tuning, "advance", meanwhile)
    with pytest.raises(ValueError, match="name 'rex' is taken"):
        world.tune(steps=1)
    assert (world.loras / "rex.safetensors").read_bytes() == b"another's"
    assert (world.loras / "rex_step1.safetensors").exists()


def hold(base: str, entered: Any, leave: Any) -> None:
    with folders(Path(base)), TuningFiles("rex").locked():
        (Path(base) / "loras" / ".rex.safetensors.0123456789abcdef.unfinished").write_bytes(b"half")
        entered.set()
        leave.wait(60)


def test_a_killed_process_leaves_neither_its_lock_nor_half_files(world: World) -> None:
    fork = multiprocessing.get_context("fork")
    entered, leave = fork.Event(), fork.Event()
    process = fork.Process(target=hold, args=(str(world.base), entered, leave))
    process.start()
    assert entered.wait(60)
    with pytest.raises(ValueError, match="being tuned already"):
        world.tune(steps=1)
    process.kill()
    process.join()
    assert list(world.loras.glob(".*.unfinished"))
    world.tune(steps=1)
    assert names(world.loras) == ["rex.safetensors"]


def test_old_sets_of_regular_pictures_go_with_what_a_killed_process_left(world: World) -> None:
    sets = [regular_folder(f"{number:02}") for number in range(regular.SETS_CACHED + 2)]
    for age, folder in enumerate(sets):
        folder.mkdir(parents=True)
        (folder / "0000.safetensors").touch()
        (folder / f".0001.safetensors.{'0' * 16}.unfinished").touch()
        os.utime(folder, (0, 10**6 - age))
    regular._forget_oldest(sets[-1])
    assert sorted(sets[0].parent.iterdir()) == [*sets[:-3], sets[-1]]


def test_unfinished_names_are_never_shared_and_old_ones_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as two containers have it
    path = world.loras / "a.safetensors"
    seen, save = [], host_files.save_file

    def noted(tensors: Any, unfinished: Path, metadata: Any) -> None:
        seen.append(Path(unfinished).name)
        save(tensors, unfinished, metadata)

    monkeypatch.setattr(host_files, "save_file", noted)
    old, new = (path.with_name(f".a.safetensors.{digit * 16}.unfinished") for digit in "12")
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    for _ in range(2):
        host_files.write(path, {"a": torch.zeros(1)}, {})
    assert len(set(seen)) == 2
    assert not old.exists()
    assert new.exists(), "somebody may be at it"


# --- strangers' files ------------------------------------------------------------------------------------------------


def headed(path: Path, header: bytes, size: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if size is None else size) + header)


def test_large_metadata_is_not_parsed(world: World) -> None:
    path = world.loras / "rex.safetensors"
    headed(path, json.dumps({"__metadata__": {KEY: "[" + "0," * 15_000_000 + "0]"}}).encode())
    begun = time.monotonic()
    assert settings_of(path) == {}
    assert host_files.read(path) is None
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    "header",
    [b"", b"\xff" * 9, b"{}", b'{"a":{"dtype":"F32","shape":[' + b"1," * 300_000 + b'1],"data_offsets":[0,4]}}'],
    ids=["empty", "no json", "nothing", "dimensions"],
)
def test_broken_states_are_none(world: World, header: bytes) -> None:
    path = world.own / "tuning" / "rex" / "state.safetensors"
    path.parent.mkdir(parents=True)
    headed(path, header)
    with pytest.raises(ValueError, match="is taken") as refusal:
        world.tune(steps=1)
    assert len(str(refusal.value)) < 400


def test_a_state_of_other_types_is_a_sentence(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Stop):
            world.tune()
    path = world.own / "tuning" / "rex" / "state.safetensors"
    state, metadata = host_files.read(path) or ({}, {})
    for change in (
        {name: x.half() for name, x in state.items() if "exp_avg" in name},
        {name: x.to(torch.float8_e4m3fn) for name, x in state.items() if name.startswith("parameter")},
        {"losses": state["losses"].long()},
        {"losses": state["losses"][None]},
    ):
        host_files.write(path, {**state, **change}, metadata)
        with pytest.raises(ValueError, match="other parameters"):
            world.tune()
    host_files.write(path, {**state, "samples.soon": state["samples.0"].clone(), "samples.1": torch.zeros(3)}, metadata)
    assert world.tune().subject.steps == 4


def test_regular_pictures_of_another_type_are_drawn_again(world: World) -> None:
    world.tune("one", steps=1)
    for path in (world.own / "regular").rglob("*.safetensors"):
        tensors, metadata = host_files.read(path) or ({}, {})
        host_files.write(path, {name: x.to(torch.float8_e4m3fn) for name, x in tensors.items()}, metadata)
    world.tune("two", steps=1)
    assert same(world.loras / "one.safetensors", world.loras / "two.safetensors")


# --- the node --------------------------------------------------------------------------------------------------------


def node(world: World, prompt: Any = None, **given: Any) -> tuple:
    from types import SimpleNamespace

    run = type("Run", (SubjectTuning,), {"hidden": SimpleNamespace(unique_id=None, prompt=prompt)})
    settings = {"rank": 2, "regular_pictures": 1, "learning_rate": 1e-2}
    inputs = {"class_word": "dog", "name": "rex", "steps": 1, "seed": 0, **settings, **given}
    return run.execute(world.model, world.clip, world.vae, inputs.pop("subject", world.subject), **inputs).args


def test_a_deleted_lora_is_written_again(world: World) -> None:
    asked = {"name": "rex", "steps": 1}
    before = SubjectTuning.fingerprint_inputs(**asked)
    node(world)
    assert SubjectTuning.fingerprint_inputs(**asked) == before, "what follows is not drawn again"
    (world.loras / "rex.safetensors").unlink()
    assert SubjectTuning.fingerprint_inputs(**asked) != before
    node(world)
    assert (world.loras / "rex.safetensors").exists()
    for odd in ({"name": None, "steps": None}, {"name": "../x", "steps": 1}, {}):
        assert SubjectTuning.fingerprint_inputs(**odd) == before


def test_phrase_is_the_last_output(world: World) -> None:
    assert node(world)[-1] == "dog embedding:rex"
    assert SubjectTuning.define_schema().outputs[-1].display_name == "phrase"


def test_a_prompt_that_misspells_the_name_is_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    prompt = {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog embedding:Rex. on grass", "clip": ["2", 0]}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog embedding:rex, on grass"}, "_meta": None},
        "3": {"inputs": None},
        "4": None,
    }
    node(world, prompt)
    assert [r.getMessage() for r in caplog.records if "a prompt has" in r.getMessage()] == [
        "DreamTuner: a prompt has 'embedding:Rex.', which ComfyUI does not read as this subject; write "
        "'embedding:rex' with a space before and after it"
    ]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"steps": "4"}, "Subject Tuning: steps must be a whole number"),
        ({"steps": True}, "steps must be a whole number"),
        ({"rank": 2.5}, "rank must be a whole number"),
        ({"text_encoder": "no"}, "text_encoder must be true or false"),
        ({"learning_rate": None}, "learning_rate must be a number"),
        (
            {"subject": {"latent": 1}},
            "expected the output of Encode Subject Image or Load Subject on subject, but got a dict",
        ),
        ({"class_word": "d\ud800g"}, r"the class word must be plain text, but has the character U\+D800"),
        ({"name": 7}, "the name must be a text"),
    ],
)
def test_wrong_kinds_are_sentences(world: World, given: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        node(world, **given)
    assert len(str(refusal.value).splitlines()) == 1
    assert not list(world.base.rglob("*.safetensors"))
