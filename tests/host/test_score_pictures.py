"""Score Pictures in the host: individuals told apart, the spoilt at the bottom, a sentence for each bad input."""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.clip_vision
import comfy.sd
import comfy.sd1_clip
import numpy as np
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from dreamtuner_pack.dreamtuner_core.host.scoring.score import METADATA
from dreamtuner_pack.nodes.score_pictures import STOP, ScorePictures
from families import draw_weights
from scoring_world import KINDS, SIDE, base, case, encoded, figures, score
from torch import Tensor

UNMASKED: dict[str, Any] = {}


def order(found: SimpleNamespace) -> list[int]:
    return [told["picture"] - 1 for told in figures(found)]


@cache
def scored(kind: str) -> SimpleNamespace:
    _, subject, images = case(kind)
    with torch.inference_mode():
        return score(images, subject, model=base().model, vae=base().vae, keep=3)


def spoilt(picture: Tensor) -> dict[str, Tensor]:
    cut = 32  # pixels
    return {
        "blank": torch.full_like(picture, 0.5),
        "noise": torch.rand(picture.shape, generator=torch.Generator().manual_seed(0)),
        "burnt": ((picture - 0.5) * 6 + 0.5).clamp(0, 1),
        "cut off": torch.cat([picture[:, :, cut:], picture[:, :, :1].expand(-1, -1, cut, -1)], dim=2),
    }


def test_own_before_others_and_other_kinds() -> None:
    """By keys: the own individual before others of its kind, and before other kinds."""
    found = []
    for kind in KINDS:
        told = {p["picture"]: p["likeness"] for p in figures(scored(kind))}
        found.append([(told[i] + told[i + 1]) / 2 for i in (1, 3, 5)])
    own, other, another = np.mean(found, axis=0)
    assert own > other + 0.02
    assert own > another + 0.02
    assert all(mine > max(others) for mine, *others in found)


def test_spoilt_pictures_fall_to_the_bottom() -> None:
    _, subject, images = case("robot")
    bad = spoilt(images[:1])
    found = score(torch.cat([*bad.values(), images[:2]]), subject)
    told = figures(found)
    assert {p["picture"] for p in told[-len(bad) :]} == {1, 2, 3, 4}
    by_picture = {p["picture"]: p for p in told}
    assert [by_picture[i + 1]["faults"] for i in range(len(bad))] == [[name] for name in bad]
    assert [by_picture[i + 1]["passed"] for i in range(len(bad))] == [False, False, False, True]
    assert len(found.rejected) == 3


def test_the_order_of_the_batch_does_not_count() -> None:
    _, subject, images = case("robot")
    shuffle = [3, 0, 5, 1, 4, 2]
    assert [shuffle[i] for i in order(score(images[shuffle], subject))] == order(scored("robot"))
    (alone,) = figures(score(images[2:3], subject))
    among = next(p for p in figures(scored("robot")) if p["picture"] == 3)
    assert alone["likeness"] == among["likeness"]


def test_best_first_and_blocked_where_none() -> None:
    images, found = case("robot")[2], scored("robot")
    ranked = order(found)
    assert torch.equal(found.best, images[ranked[:3]])
    assert torch.equal(found.accepted, images[ranked])
    assert isinstance(found.rejected, ExecutionBlocker)
    assert found.rejected.message is None
    assert found.passed is True
    assert found.sheet.shape[0] == 1


@pytest.mark.parametrize(("on_fail", "blocked"), [("pass the best", False), (STOP, True)])
def test_where_none_passes(on_fail: str, blocked: bool) -> None:
    _, subject, images = case("robot")
    blank = torch.full_like(images[:2], 0.5)
    found = score(blank, subject, model=base().model, vae=base().vae, on_fail=on_fail)
    assert found.passed is False
    assert isinstance(found.accepted, ExecutionBlocker)
    assert isinstance(found.best, ExecutionBlocker) == blocked
    if blocked:
        assert "none of 2 pictures passed" in found.best.message


def test_figures_go_into_the_metadata() -> None:
    _, subject, images = case("robot")
    prompt, sent = {"7": {"class_type": "DreamTunerScorePictures", "inputs": {}}}, {"workflow": {}}
    ScorePictures.hidden = SimpleNamespace(prompt=prompt, unique_id="7", extra_pnginfo=sent)
    made = ScorePictures.execute(images, subject, model=base().model, vae=base().vae, keep=2).args
    best = json.loads(made[4])["pictures"][:2]
    assert sent[METADATA] == prompt["7"]["_meta"][METADATA] == best


# --- towers, as the host builds them, small and of random weights -----------------------------------------------------


@cache
def tower(folder: Path, model_type: str = "clip_vision_model", projection: int = 48) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    shape = {"image_size": 28, "patch_size": 14, "num_channels": 3, "hidden_act": "gelu", "projection_dim": projection}
    rest = {"layer_norm_eps": 1e-6, "use_swiglu_ffn": False, "model_type": model_type}
    path = folder / f"{model_type}_{projection}.json"
    path.write_text(json.dumps(sizes | shape | rest | ({"image_size": 518} if model_type == "dinov2" else {})))
    found = comfy.clip_vision.ClipVisionModel(str(path))
    draw_weights(found.model, 1)
    return found


def text_encoder(folder: Path, projected: bool = True, size: int = 48) -> comfy.sd.CLIP:
    """A CLIP of the host as an SD2.x checkpoint's, with a text projection, or without one as SD1.x's."""
    sizes = {"hidden_size": size, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2}
    rest = {"hidden_act": "gelu", "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
    path = folder / f"text_{size}.json"
    path.write_text(json.dumps(sizes | rest))
    encoder = partial(comfy.sd1_clip.SDClipModel, textmodel_json_config=str(path), return_projected_pooled=projected)
    model = partial(comfy.sd1_clip.SD1ClipModel, clip_name="l", clip_model=encoder)
    clip = comfy.sd.CLIP(SimpleNamespace(params={}, clip=model, tokenizer=comfy.sd1_clip.SD1Tokenizer))
    draw_weights(clip.cond_stage_model, 2)
    return clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("towers")


@pytest.mark.parametrize(("model_type", "name"), [("clip_vision_model", "CLIP"), ("dinov2", "DINOv2")])
def test_likeness_by_a_tower_is_the_cosine_of_the_subjects_alone(folder: Path, model_type: str, name: str) -> None:
    _, subject, images = case("robot")
    seen = tower(folder, model_type)
    same = torch.cat([subject.picture, images[:1]])
    told = json.loads(score(same, subject, clip_vision=seen).scores)
    likeness = {p["picture"]: p["likeness"] for p in told["pictures"]}
    assert told["likeness_by"] == name
    assert likeness[1] > 0.97  # the reference itself, but for its mask's edge
    assert likeness[1] > likeness[2]


def test_text_match_is_the_cosine_of_the_pair(folder: Path) -> None:
    _, subject, images = case("robot")
    seen, clip = tower(folder), text_encoder(folder)
    found = score(images, subject, clip_vision=seen, clip=clip, text="a robot on a beach", min_text=0.9)
    told = {p["picture"]: p for p in figures(found)}
    pooled = clip.encode_from_tokens(clip.tokenize("a robot on a beach"), return_pooled=True)[1]
    for i in range(len(images)):
        wanted = torch.cosine_similarity(seen.encode_image(images[i : i + 1])["image_embeds"].double(), pooled.double())
        assert told[i + 1]["text"] == pytest.approx(float(wanted), abs=1e-3)
        assert told[i + 1]["failures"] == ["text below 0.9"]


# --- bad input --------------------------------------------------------------------------------------------------------


def test_every_bad_input_has_a_sentence(folder: Path) -> None:
    _, subject, images = case("robot")
    own = {"model": base().model, "vae": base().vae}
    seen, other = tower(folder), tower(folder, projection=32)
    text = text_encoder(folder)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("nothing is linked that measures likeness", {"keep": 1}),
        ("nothing is linked that measures likeness", {"model": base().model}),
        ("have no threshold", own | {"min_likeness": 0.5}),
        ("link clip_vision, or unlink clip", own | {"clip": text, "text": "a robot"}),
        ("there is no text to match", own | {"min_text": 0.2}),
        ("the text to match is empty", {"clip_vision": seen, "clip": text, "text": " "}),
        ("no text projection", {"clip_vision": seen, "clip": base().clip, "text": "a robot"}),
        ("no text projection", {"clip_vision": seen, "clip": text_encoder(folder, projected=False), "text": "a robot"}),
        ("are not a pair", {"clip_vision": other, "clip": text, "text": "a robot"}),
        ("are not a pair", {"clip_vision": tower(folder, "dinov2"), "clip": text, "text": "a robot"}),
        ("min_sharpness must be between 0 and 1", own | {"min_sharpness": float("nan")}),
    ]
    for sentence, inputs in wrong:
        with pytest.raises(ValueError, match=f"^Score Pictures: .*{sentence}"):
            score(images, subject, **inputs)
    with pytest.raises(ValueError, match="expected RGB pictures"):
        score(images[..., :1], subject)
    with pytest.raises(ValueError, match="NaN or infinite values"):
        score(images * float("nan"), subject)


def test_a_subject_without_a_mask_is_found_in_its_picture_or_refused() -> None:
    _, subject, images = case("robot")
    with torch.inference_mode():
        whole = encoded(subject.picture, **UNMASKED)
        nothing = encoded(torch.full((1, SIDE, SIDE, 3), 0.5), **UNMASKED)
    assert set(order(score(images, whole))[:2]) == {0, 1}
    with pytest.raises(ValueError, match="the subject has no mask, and none could be found"):
        score(images, nothing)


def test_any_size_of_picture() -> None:
    _, subject, images = case("robot")
    wide = torch.cat([images[:1], images[:1, :, :1].expand(-1, -1, 72, -1)], dim=2)
    found = score(wide, subject)
    assert found.best.shape == wide.shape
