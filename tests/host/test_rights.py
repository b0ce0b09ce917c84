"""Rights of a subject that was encoded here: on the node, in the pictures' metadata, in its file."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dreamtuner_pack.dreamtuner_core.host.subject import rights as rights_of_run
from dreamtuner_pack.dreamtuner_core.host.subject.rights import METADATA, tell_rights, today
from dreamtuner_pack.dreamtuner_core.host.subject.saved import load_subject, save_subject
from dreamtuner_pack.dreamtuner_core.picture.hints import NOTES
from dreamtuner_pack.dreamtuner_core.rights import OwnedSubject, Rights
from dreamtuner_pack.dreamtuner_core.subject import Subject
from dreamtuner_pack.nodes.saved_subject import LoadSubject
from dreamtuner_pack.nodes.subject import EncodeSubjectImage
from graph import attend, draw, shared_model, subject
from images import RESOLUTION, encode, picture, vae
from tuning_world import folders

GIVEN = {"owner": " Ada ", "allowed_uses": "poster", "until": "2030-01-01"}
RIGHTS = Rights("Ada", "poster", "2030-01-01")


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    with folders(tmp_path):
        yield tmp_path


def test_they_travel_into_files_and_metadata(base: Path) -> None:
    made, _ = encode(picture(), **GIVEN)
    assert made.rights == RIGHTS
    given: list[dict[str, Any]] = [GIVEN, GIVEN | {"owner": ["7", 0]}, GIVEN | {"owner": "Eve"}, {}]
    prompt = {
        str(i): {"class_type": "DreamTunerEncodeSubjectImage", "inputs": inputs} for i, inputs in enumerate(given)
    }
    tell_rights(made, prompt, None)
    told = {METADATA: {"subject": "", **vars(RIGHTS)}}
    assert [node.get("_meta") for node in prompt.values()] == [told, told, None, None]
    assert save_subject(made, "ada").name == "ada.safetensors"
    assert load_subject("ada.safetensors")[0].rights == RIGHTS


def test_a_subject_without_rights_is_a_plain_one() -> None:
    assert type(encode(picture())[0]) is Subject


def test_a_day_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="Encode Subject Image: until must be a day written like 2030-12-31"):
        encode(picture(), until="soon")


@pytest.mark.parametrize(("until", "ended"), [("2000-01-01", True), (today().isoformat(), False), ("", False)])
def test_an_ended_day_shows_on_the_nodes(base: Path, until: str, ended: bool) -> None:
    encoded = EncodeSubjectImage.execute(picture(), vae(), resolution=RESOLUTION, owner="Ada", until=until)
    save_subject(encoded.args[0], "ada")
    load = type("Run", (LoadSubject,), {"hidden": SimpleNamespace(prompt=None, extra_pnginfo=None)})
    loaded = load.execute("ada.safetensors")
    assert ["ended" in node.ui["dreamtuner_notes"] for node in (encoded, loaded)] == [ended, ended]
    assert (NOTES["ended"] in loaded.ui["text"]) is ended


def test_a_run_tells_them_to_the_graph_where_the_cache_answered_for_the_subjects_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then Load Subject is not run again, and the graph that is queued now knows nothing of them yet."""
    load = {"class_type": "DreamTunerLoadSubject", "inputs": {"file": "pot.safetensors"}}
    graph = {"1": load, "2": {"class_type": "KSampler", "inputs": {}}}
    state = SimpleNamespace(dynprompt=SimpleNamespace(get_original_prompt=lambda: graph))
    monkeypatch.setattr(rights_of_run, "get_progress_state", lambda: state)
    plain = vars(subject())
    one = OwnedSubject(**plain, name="pot", rights=Rights(owner="Ann"))
    draw(attend(shared_model("sd1"), one), steps=1)
    assert load["_meta"][METADATA]["owner"] == "Ann"
    assert "_meta" not in graph["2"]
