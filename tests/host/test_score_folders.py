"""Score Pictures by folders of transformers: the model's own cosine, and a sentence for each that does not fit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy
import folder_paths
import pytest
import torch
from dreamtuner_pack.dreamtuner_core.host.scoring.folder import FolderTower, tower_folders
from dreamtuner_pack.nodes.score_pictures import NO_FOLDER, ScorePictures
from families import draw_weights
from scoring_world import base, case, figures, score

CLIP, DINO = "tiny_clip", "tiny_dino"
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
LOOK = {"image_size": 28, "patch_size": 14}
PIXELS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_size": {"height": 28, "width": 28}}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """models/clip_vision with the smallest CLIP and DINOv2."""
    import transformers

    room = tmp_path_factory.mktemp("clip_vision")
    texts = transformers.CLIPTextConfig(**SIZES, vocab_size=49408)
    looks = transformers.CLIPVisionConfig(**SIZES, **LOOK)
    clip = transformers.CLIPConfig(text_config=texts.to_dict(), vision_config=looks.to_dict(), projection_dim=16)
    made = {
        CLIP: transformers.CLIPModel(clip),
        DINO: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, **LOOK)),
    }
    tokenizer = Path(comfy.__path__[0]) / "sd1_tokenizer"
    for name, model in made.items():
        draw_weights(model, 3)
        model.save_pretrained(room / name)
        (room / name / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    shutil.copytree(tokenizer, room / CLIP, dirs_exist_ok=True)
    known = folder_paths.folder_names_and_paths["clip_vision"]
    folder_paths.folder_names_and_paths["clip_vision"] = ([str(room)], *known[1:])
    yield room
    folder_paths.folder_names_and_paths["clip_vision"] = known


def spoilt(room: Path, name: str, of: str, **changes: Any) -> str:
    """A copy of that folder with other values in its config; None takes that file away."""
    shutil.copytree(room / of, room / name)
    config = {k: v for k, v in changes.items() if k == "model_type"}
    if config:
        told = json.loads((room / name / "config.json").read_text()) | config
        (room / name / "config.json").write_text(json.dumps(told))
    for file in changes.get("without", ()):
        (room / name / file).unlink(missing_ok=True)
    return name


def test_folders_are_listed(room: Path) -> None:
    (room / "no_model").mkdir(exist_ok=True)
    assert set(tower_folders()) >= {CLIP, DINO}
    assert "no_model" not in tower_folders()
    offered = next(one for one in ScorePictures.define_schema().inputs if one.id == "tower_folder")
    assert offered.options == [NO_FOLDER, *tower_folders()]


def test_likeness_and_text_match_are_the_models_own(room: Path) -> None:
    import transformers

    _, subject, images = case("robot")
    asked = {"tower_folder": CLIP, "text": "a robot on a beach", "min_text": 0.99, "min_likeness": 0.1}
    found = score(torch.cat([subject.picture, images[:1]]), subject, **asked)
    told = {figures["picture"]: figures for figures in figures(found)}
    assert json.loads(found.scores)["likeness_by"] == "CLIP"
    assert told[1]["likeness"] > max(0.97, told[2]["likeness"])
    model = transformers.CLIPModel.from_pretrained(room / CLIP)
    tokens = transformers.CLIPTokenizer.from_pretrained(room / CLIP)("a robot on a beach", return_tensors="pt")
    small = torch.nn.functional.interpolate(subject.picture.movedim(-1, 1), (28, 28), mode="bicubic", antialias=True)
    with torch.inference_mode():
        seen = model(pixel_values=small.clamp(0, 1) * 2 - 1, **tokens)
    assert told[1]["text"] == pytest.approx(float(seen.image_embeds[0] @ seen.text_embeds[0]), abs=2e-3)


def test_a_dino_measures_likeness_alone(room: Path) -> None:
    _, subject, images = case("robot")
    found = score(torch.cat([subject.picture, images[:1]]), subject, tower_folder=DINO)
    told = {figures["picture"]: figures for figures in figures(found)}
    assert json.loads(found.scores)["likeness_by"] == "DINO"
    assert told[1]["likeness"] > max(0.97, told[2]["likeness"])
    assert told[1]["text"] is None


def test_every_misfit_has_a_sentence(room: Path) -> None:
    _, subject, images = case("robot")
    another = spoilt(room, "another", DINO, model_type="bert")
    half = spoilt(room, "half", DINO, without=["model.safetensors"])
    blind = spoilt(room, "blind", DINO, without=["preprocessor_config.json"])
    mute = spoilt(room, "mute", CLIP, without=[x.name for x in (room / CLIP).iterdir() if "vocab" in x.name])
    (room / "odd").mkdir()
    (room / "odd" / "config.json").write_text("no json")
    pixels = json.loads((room / DINO / "preprocessor_config.json").read_text())
    changes: list[dict[str, Any]] = [
        {"crop_size": "x", "size": "x"},
        {"crop_size": {"height": -1}},
        {"crop_size": 10**9},
        {"crop_size": [224]},
        {"crop_size": {"a": None}},
        {"image_mean": "x"},
        {"image_mean": [0.5]},
        {"image_std": [0, 0, 0]},
        {"image_std": [1, 1, 1e400]},
    ]
    for number, change in enumerate(changes):
        folder = spoilt(room, f"pixels_{number}", DINO)
        (room / folder / "preprocessor_config.json").write_text(json.dumps(pixels | change))
    huge, pipe = spoilt(room, "huge", DINO), spoilt(room, "pipe", DINO, without=["preprocessor_config.json"])
    (room / huge / "preprocessor_config.json").write_text("[" + " " * 2**21 + "]")
    os.mkfifo(room / pipe / "preprocessor_config.json")
    (room / "folder" / "config.json").mkdir(parents=True)
    text = {"text": "a robot"}
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("there is no folder 'elsewhere'", {"tower_folder": "elsewhere"}),
        ("there is no folder '../x'", {"tower_folder": "../x"}),
        ("'another' is a bert, which is neither CLIP nor DINO", {"tower_folder": another}),
        ("'half' cannot be loaded", {"tower_folder": half}),
        ("'blind' has no valid preprocessor_config.json", {"tower_folder": blind}),
        ("'odd' has no valid config.json", {"tower_folder": "odd"}),
        *((f"'pixels_{i}' has no valid preproc", {"tower_folder": f"pixels_{i}"}) for i in range(len(changes))),
        ("'huge' has no valid preprocessor_config.json", {"tower_folder": huge}),
        ("'pipe' has no valid preprocessor_config.json", {"tower_folder": pipe}),
        ("there is no folder 'folder'", {"tower_folder": "folder"}),
        ("'mute' cannot be loaded", {"tower_folder": mute} | text),
        ("is a DINO, which cannot read text", {"tower_folder": DINO} | text),
        ("no text to match", {"tower_folder": CLIP, "min_text": 0.2}),
        ("both clip_vision and the tower_folder", {"tower_folder": CLIP, "clip_vision": base().model}),
    ]
    for sentence, inputs in wrong:
        with pytest.raises(ValueError, match=f"^Score Pictures: .*{sentence}") as refusal:
            score(images[:1], subject, **inputs)
        assert len(str(refusal.value).splitlines()) == 1


def test_it_lies_on_the_hosts_devices(room: Path) -> None:
    management = comfy.model_management
    tower = FolderTower(DINO)
    tower.picture(torch.rand(1, 28, 28, 3))
    assert any(loaded.model is tower._patcher for loaded in management.current_loaded_models)
