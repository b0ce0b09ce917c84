"""Save Subject and Load Subject: the very same effect, standard names, and files of strangers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dreamtuner_pack.dreamtuner_core.host.encoder.load import SubjectEncoding
from dreamtuner_pack.dreamtuner_core.host.files import File
from dreamtuner_pack.dreamtuner_core.host.subject import saved as saved_subject
from dreamtuner_pack.dreamtuner_core.host.subject.rights import METADATA, tell_rights
from dreamtuner_pack.dreamtuner_core.host.subject.saved import load_subject, save_subject
from dreamtuner_pack.dreamtuner_core.rights import Rights
from dreamtuner_pack.dreamtuner_core.subject_file import FORMAT, from_file
from dreamtuner_pack.dreamtuner_core.tuned_subject import TunedSubject
from dreamtuner_pack.nodes.saved_subject import LoadSubject, SaveSubject
from families import text
from graph import attend, hard_mask, sample, shared_model, subject
from safetensors.torch import load_file, save_file
from torch import nn
from tuning_world import folders

RIGHTS = Rights("Ada Lovelace", "one poster, no adverts", "2030-12-31")


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    with folders(tmp_path):
        yield tmp_path


def tuned(of: Any) -> TunedSubject:
    return TunedSubject(of, "teapot", "blue_teapot", "0" * 64, 400, {"l": torch.randn(48)})


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("captioned", [True, False])
def test_a_loaded_subject_has_the_very_same_effect(base: Path, family: str, masked: bool, captioned: bool) -> None:
    of = subject(family, hard_mask() if masked else None, captioned=captioned, noise_seed=2**63 + 5)
    save_subject(of, "pot")
    loaded, learned = load_subject("pot.safetensors")
    assert learned is None
    model, positive, negative = shared_model(family), text(family, 1), text(family, 2)
    wanted = sample(attend(model, of), positive, negative)
    assert torch.equal(sample(attend(model, loaded), positive, negative), wanted)
    assert not torch.equal(sample(model, positive, negative), wanted)


def test_two_processes_that_save_one_name_lose_neither_subject(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs, save, meanwhile = subject(seed=1), subject(seed=2), File.save, [lambda: save_subject(theirs, "pot")]

    def slow(self: File, path: Path) -> None:
        save(self, path)
        if meanwhile:
            meanwhile.pop()()

    monkeypatch.setattr(File, "save", slow)
    assert save_subject(ours, "pot").name == "pot_00002.safetensors"
    for name, of in (("pot", theirs), ("pot_00002", ours)):
        assert torch.equal(load_subject(f"{name}.safetensors")[0].latent, of.latent)


def test_a_lora_that_cannot_be_read_is_a_warning(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreadable(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    of = subject(mask=hard_mask())
    save_subject(of, "pot", tuned(of))
    (base / "loras" / "blue_teapot.safetensors").touch()
    monkeypatch.setattr(saved_subject, "file_hash", unreadable)
    assert load_subject("pot.safetensors")[1] is not None
    assert "is not the file that this subject was saved with" in caplog.text


def test_what_was_learned_comes_back(base: Path) -> None:
    of = subject(mask=hard_mask())
    learned = tuned(of)
    save_subject(of, "pot", learned, RIGHTS, "a blue teapot")
    loaded, back = load_subject("pot.safetensors")
    assert back is not None
    assert (back.class_word, back.name, back.lora_hash, back.steps) == ("teapot", "blue_teapot", "0" * 64, 400)
    assert torch.equal(back.words["l"], learned.words["l"])
    assert back.phrase == "teapot embedding:blue_teapot"
    assert (loaded.rights, loaded.caption_text) == (RIGHTS, "a blue teapot")


@dataclass
class Named:
    name: str
    model: nn.Module


def test_the_encoders_tokens_come_back_with_their_encoder(base: Path) -> None:
    tokens, encoder = torch.randn(1, 5, 48), Named("mine.safetensors", nn.Linear(2, 2))
    of = replace(subject(), encoding=SubjectEncoding(encoder, tokens, None))  # type: ignore[arg-type]
    save_subject(of, "pot")
    assert load_subject("pot.safetensors")[0].encoding is None
    encoding = load_subject("pot.safetensors", encoder)[0].encoding  # type: ignore[arg-type]
    assert encoding is not None
    assert torch.equal(encoding.tokens, tokens)
    with pytest.raises(ValueError, match=r"mine\.safetensors.*other"):
        load_subject("pot.safetensors", Named("other", encoder.model))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'mine\.safetensors' is not the file any more"):
        load_subject("pot.safetensors", Named(encoder.name, nn.Linear(2, 2)))  # type: ignore[arg-type]


def test_a_taken_name_gets_a_number_and_the_same_subject_is_one_file(base: Path) -> None:
    one, other = subject(seed=1), subject(seed=2)
    assert save_subject(one, "pot").name == "pot.safetensors"
    assert save_subject(one, "pot").name == "pot.safetensors"
    assert save_subject(other, "pot").name == "pot_00002.safetensors"
    assert torch.equal(load_subject("pot.safetensors")[0].latent, one.latent)
    assert save_subject(one, "pot", rights=RIGHTS).name == "pot_00003.safetensors"
    assert sorted(p.name for p in (base / "subjects").iterdir()) == [
        "pot.safetensors", "pot_00002.safetensors", "pot_00003.safetensors",
    ]  # fmt: skip


def test_rights_go_along_when_a_loaded_subject_is_saved_again(base: Path) -> None:
    save_subject(subject(), "pot", rights=RIGHTS)
    save_subject(load_subject("pot.safetensors")[0], "copy")
    assert load_subject("copy.safetensors")[0].rights == RIGHTS


def test_a_tuned_subject_of_another_is_refused(base: Path) -> None:
    with pytest.raises(ValueError, match="tuned on another subject"):
        save_subject(subject(seed=1), "pot", tuned(subject(seed=2)))


@pytest.mark.parametrize("name", ["../pot", "CON", "", "a\\b", "pot\n"])
def test_hostile_names_are_refused(base: Path, name: str) -> None:
    if name != "pot\n":  # spaces around a name are dropped
        with pytest.raises(ValueError, match="the name"):
            save_subject(subject(), name)
    for wanted in (name, "../../etc/passwd", str(base / "x.safetensors")):
        with pytest.raises(ValueError, match="models/subjects"):
            load_subject(wanted)


def spoil(path: Path, change: Any) -> None:
    """Write the subject's file again with its tensors and metadata changed."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    change(tensors, metadata)
    save_file({name: x.contiguous() for name, x in tensors.items()}, path, metadata)


def plain(change: dict) -> Any:
    def apply(tensors: dict, metadata: dict) -> None:
        metadata["subject"] = json.dumps({**json.loads(metadata["subject"]), **change})

    return apply


TUNED = {"class_word": "teapot", "name": "pot", "lora_hash": "0" * 64, "steps": 3}

HOSTILE = {
    "another format": (lambda t, m: m.update(format="x"), "not a saved subject"),
    "newer version": (lambda t, m: m.update(version="9"), "version 9"),
    "no json": (lambda t, m: m.update(subject="{"), "do not describe"),
    "deep json": (lambda t, m: m.update(subject="[" * 100_000), "do not describe"),
    "unknown tensor": (lambda t, m: t.update(code=torch.zeros(3)), "'code'"),
    "wrong picture": (lambda t, m: t.update(picture=torch.zeros(1, 64, 80, 4)), "'picture'"),
    "no picture": (lambda t, m: t.pop("picture"), "lacks its picture"),
    "latent that does not fit": (lambda t, m: t.update(latent=torch.zeros(1, 4, 9, 10)), "but its shape is 1x4x9x10"),
    "integers": (lambda t, m: t.update(latent=torch.zeros(1, 4, 8, 10, dtype=torch.int64)), "'latent'"),
    "mask of another size": (lambda t, m: t.update(mask=torch.zeros(1, 8, 8)), "'mask'"),
    "NaN": (lambda t, m: t["latent"].fill_(torch.nan), "NaN or infinite values"),
    "out of range": (lambda t, m: t["picture"].fill_(7), "0..1"),
    "seed": (plain({"noise_seed": -1}), "noise seed"),
    "seed of another kind": (plain({"noise_seed": "1"}), "noise seed"),
    "rights of another kind": (plain({"rights": {"owner": 7}}), "owner"),
    "rights without an end": (plain({"rights": {"until": "soon"}}), "until"),
    "tuning": (plain({"tuning": {"name": 1}}), "its tuning must have class_word"),
    "long text": (plain({"caption_text": "x" * 5000}), "at most 4000"),
    "an odd owner": (plain({"rights": {"owner": "a\ud800"}}), "owner must be plain text"),
    "a terminal's colours": (plain({"caption_text": "\x1b[31m"}), "caption_text must be plain text"),
    "a path for a name": (plain({"tuning": TUNED | {"name": "../x"}}), "name"),
    "steps in words": (plain({"tuning": TUNED | {"steps": "many"}}), "steps"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_strangers_file_is_refused_in_one_sentence(base: Path, kind: str) -> None:
    change, sentence = HOSTILE[kind]
    path = save_subject(subject(mask=hard_mask()), "pot")
    spoil(path, change)
    with pytest.raises(ValueError, match=sentence) as refusal:
        load_subject("pot.safetensors")
    assert "pot.safetensors" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1
    assert str(refusal.value).isprintable()
    assert ".;" not in str(refusal.value)


def test_a_graph_of_any_form_is_no_reason_to_fail(base: Path) -> None:
    save_subject(subject(), "pot", rights=RIGHTS)
    loaded, _ = load_subject("pot.safetensors")
    load = {"class_type": "DreamTunerLoadSubject", "inputs": {"file": "pot.safetensors"}, "_meta": None}
    prompt: Any = {"1": load, "2": None, "3": {"class_type": "DreamTunerLoadSubject", "inputs": None}, "4": {}}
    extra: Any = {METADATA: "text"}
    tell_rights(loaded, prompt, extra)
    told = {"subject": "pot", **vars(RIGHTS)}
    assert prompt["1"]["_meta"] == {METADATA: told}
    assert extra == {METADATA: [told]}


def test_nothing_of_the_files_times_is_in_the_pictures(base: Path) -> None:
    path = save_subject(subject(), "pot")
    before = LoadSubject.fingerprint_inputs("pot.safetensors")
    for number in (path.stat().st_mtime_ns, path.stat().st_size, int(path.stat().st_mtime)):
        assert str(number) not in before
    path.touch()
    assert LoadSubject.fingerprint_inputs("pot.safetensors") != before


def test_a_file_that_is_none_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_subject(subject(), "pot")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="not a complete safetensors"):
        from_file(path)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="not a complete safetensors"):
        from_file(path)
    monkeypatch.setattr("dreamtuner_pack.dreamtuner_core.subject_file.LARGEST_FILE", 3)
    with pytest.raises(ValueError, match="larger"):
        from_file(path)


def test_nothing_half_written_stays(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dreamtuner_pack.dreamtuner_core.host.files.save_file", fill)
    with pytest.raises(ValueError, match="disk is full"):
        save_subject(subject(), "pot")
    assert not list((base / "subjects").iterdir())


# --- rights and the nodes --------------------------------------------------------------------------------------------


def test_rights_travel_into_the_pictures_metadata(base: Path) -> None:
    save_subject(subject(), "pot", rights=RIGHTS)
    loaded, _ = load_subject("pot.safetensors")
    prompt = {
        "1": {"class_type": "DreamTunerLoadSubject", "inputs": {"file": "pot.safetensors"}, "_meta": {"title": "x"}},
        "2": {"class_type": "DreamTunerLoadSubject", "inputs": {"file": "other.safetensors"}},
    }
    extra: dict[str, Any] = {"workflow": {}}
    for _ in range(2):  # twice is as once
        tell_rights(loaded, prompt, extra)
    told = {"subject": "pot", **vars(RIGHTS)}
    assert extra == {"workflow": {}, METADATA: [told]}
    assert prompt["1"]["_meta"] == {"title": "x", METADATA: told}
    assert "_meta" not in prompt["2"]
    tell_rights(loaded, None, None)
    save_subject(subject(), "free")
    nothing: dict[str, Any] = {}
    tell_rights(load_subject("free.safetensors")[0], None, nothing)
    assert nothing == {}


def load(file: str) -> tuple:
    holder = SimpleNamespace(prompt=None, extra_pnginfo=None)
    node = type("Run", (LoadSubject,), {"hidden": holder})
    return node.execute(file).args


def test_nodes(base: Path) -> None:
    of = subject()
    file = SaveSubject.execute(of, "pot", tuned(of), "a teapot", " Ada ", "poster", "2030-01-01").args[0]
    loaded, learned, phrase, rights = load(file)
    assert torch.equal(loaded.latent, of.latent)
    assert learned.class_word == "teapot"
    assert phrase == "teapot embedding:blue_teapot"
    assert rights.startswith("Owner: Ada\nAllowed: poster\nUntil: 2030-01-01")
    SaveSubject.execute(of, "plain")
    _, learned, phrase, rights = load("plain.safetensors")
    assert "not tuned" in learned.message
    assert rights == ""
    with pytest.raises(ValueError, match="Save Subject: until must be a day written like 2030-12-31"):
        SaveSubject.execute(of, "pot", until="tomorrow")
    assert LoadSubject.fingerprint_inputs("pot.safetensors") != LoadSubject.fingerprint_inputs("plain.safetensors")
    assert LoadSubject.fingerprint_inputs("../x") == ""


def test_a_lora_that_is_missing_or_another_is_noted(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    of = subject()
    save_subject(of, "pot", tuned(of))
    load_subject("pot.safetensors")
    assert "not in models/loras" in caplog.text
    (base / "loras" / "blue_teapot.safetensors").write_bytes(b"another")
    load_subject("pot.safetensors")
    assert "is not the file" in caplog.text


def test_format_is_named() -> None:
    assert FORMAT == "dreamtuner.subject"
    assert saved_subject.SUBJECTS.name == "subjects"
