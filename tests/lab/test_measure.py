"""The measures on true pictures, where the answer is known; the statistics; and one tiny table from end to end."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lab import measure
from lab.demo import CHECKPOINT
from lab.measure import eye as eye_module
from lab.measure.bench import Bench, Settings, run_rows
from lab.measure.changes import CHANGES
from lab.measure.eye import SCENE_NAMES, Eye, as_floats, linear_reader
from lab.measure.layout import Layout, small
from lab.measure.likeness import MEASURES, Likeness
from lab.measure.local_models import LocalModels
from lab.measure.report import figures, page
from lab.measure.rows import FULL, LESS, MORE, NO_LESS, NO_MORE, PLAIN, Expect, WithSubject
from lab.measure.statistics import Interval, frechet_distance, interval, share
from lab.measure.studio import REFERENCE_SCENE, REFERENCE_SEED, REFERENCE_SIDE, REFERENCE_SIZES, Sampling
from lab.measure.subjects import HARD, USUAL, WORDS, Look, held_out_looks, placed, subjects, unknown_looks
from lab.measure.table import chosen, table
from lab.measure.verdicts import FAILS, HOLDS, NOISE, judged
from lab.mini.artwork import DRAWINGS, KINDS, load_artwork, load_held_out
from lab.mini.config import UNSEEN_CONCEPTS

SIDE, SCENE = 128, "grass"
BUTTERFLY, OTHER_BUTTERFLY = Look("butterfly", "fluent-3d"), Look("butterfly", "noto")
CAR, CAT = Look("automobile", "noto-v1"), Look("cat face", "noto")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():  # as measure runs
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def eye(tmp_path_factory: pytest.TempPathFactory) -> Eye:
    """An eye whose readers have seen few pictures: enough to tell a subject from a scene."""
    return Eye(SIDE, tmp_path_factory.mktemp("eye"), pictures=160)


# --- measures ------------------------------------------------------------------------------------------------------


def test_same_drawing_above_other_drawing_above_other_concept(eye: Eye) -> None:
    likeness = Likeness(eye, [(BUTTERFLY, SCENE)])
    same, kin, stranger = (
        likeness.score(eye.view(look, SCENE, 4321), BUTTERFLY, SCENE) for look in (BUTTERFLY, OTHER_BUTTERFLY, CAR)
    )
    assert same["identity"] > kin["identity"] + 0.5 > stranger["identity"] + 0.6
    for name in MEASURES:
        assert same[name] > max(kin[name], stranger[name])
        assert 0.5 < same[name] < 1.5
        assert abs(stranger[name]) < 0.5
    calibration = likeness.calibration()
    for name in ("identity", "patches", "detail"):
        assert 0 < calibration[name]["same concept"] < 1


def test_colour_follows_the_hue_and_edges_do_not(eye: Eye) -> None:
    likeness = Likeness(eye, [(CAR, SCENE)])
    own = likeness.score(eye.view(CAR, SCENE, 11), CAR, SCENE)
    turned = likeness.score(eye.view(Look(CAR.concept, CAR.drawing, 0.5), SCENE, 11), CAR, SCENE)
    assert turned["colour"] < own["colour"] - 0.4
    assert turned["edges"] > 0.5


def test_the_eye_finds_the_subject_and_names_what_it_was_taught(eye: Eye) -> None:
    true = [placed(look, scene, SIDE, 77) for look in (CAT, OTHER_BUTTERFLY) for scene in ("grass", "a night sky")]
    sight = eye.see(as_floats(np.stack([p.pixels for p in true])))
    masks = torch.nn.functional.interpolate(as_floats(np.stack([p.mask for p in true]))[:, None], [56, 56], mode="area")
    inside, found = masks[:, 0] > 0.5, sight.subject > 0.5
    assert ((inside & found).sum((1, 2)) / (inside | found).sum((1, 2)) > 0.5).all()
    concepts, scenes = eye.named(sight)
    assert concepts == ["cat face", "cat face", "butterfly", "butterfly"]
    assert scenes == ["grass", "a night sky"] * 2


def test_bleed_reacts_to_the_references_background(eye: Eye) -> None:
    picture, behind = placed(CAT, SCENE, SIDE, 3), placed(CAT, REFERENCE_SCENE, SIDE, 3)
    half = picture.pixels.copy()
    half[: SIDE // 2] = np.where(picture.mask[: SIDE // 2, :, None] > 0, half[: SIDE // 2], behind.pixels[: SIDE // 2])
    number = SCENE_NAMES.index(REFERENCE_SCENE)
    clean, bled = (float(eye.see(as_floats(x)[None]).scenes[0, number]) for x in (picture.pixels, half))
    assert clean < 0.1
    assert bled > clean + 0.2


def test_leak_is_one_where_the_reference_stood_and_none_elsewhere() -> None:
    layout = Layout(SIDE)
    own = small(placed(CAT, REFERENCE_SCENE, REFERENCE_SIDE * SIDE, REFERENCE_SEED, REFERENCE_SIZES).mask).float()
    assert layout.leak(own, CAT) == pytest.approx(1)
    elsewhere = [layout.leak(small(placed(CAT, SCENE, SIDE, seed).mask).float(), CAT) for seed in range(300, 330)]
    assert abs(np.mean(elsewhere)) < 0.1
    assert max(elsewhere) < 0.8
    assert layout.leak(torch.zeros(56, 56), CAT) < 0


def test_variety_is_one_for_true_pictures_and_none_in_one_place() -> None:
    layout = Layout(SIDE)
    places = torch.stack([small(placed(CAT, SCENE, SIDE, seed).mask).float() for seed in range(300, 330)])
    assert np.mean(layout.variety(places, CAT)) == pytest.approx(1, abs=0.15)
    assert layout.variety(places[:1].repeat(3, 1, 1), CAT) == pytest.approx([0, 0, 0])
    alone, one, other = layout.variety(places[[0, 1, 1]], CAT)
    assert alone > one == other > 0


def test_readers_are_kept_and_read_again(eye: Eye, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Eye, "_train_readers", None)
    seen = eye.view(CAR, SCENE, 900)
    again = Eye(SIDE, eye.folder, pictures=160)
    assert again.readers.keys() == eye.readers.keys()
    monkeypatch.setattr(Eye, "see", None)
    assert torch.equal(again.view(CAR, SCENE, 900).pooled, seen.pooled)


def test_a_missing_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"the judge needs the packages efficientnet-lite-pytorch"):
        eye_module.network()


def test_a_linear_reader_learns_what_can_be_separated() -> None:
    x = torch.cat([torch.randn(300, 5, generator=torch.Generator().manual_seed(0)), torch.ones(300, 1)], dim=1)
    labels = (x[:, 0] + 2 * x[:, 3] > 0.3).long()
    assert ((x @ linear_reader(x, labels, 2)).argmax(1) == labels).float().mean() > 0.97


# --- statistics ----------------------------------------------------------------------------------------------------


def test_interval_is_over_groups() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(2, 1, 40).tolist()
    few, many = interval(values, range(40)), interval(values * 25, [g for _ in range(25) for g in range(40)])
    assert few.low < 2 < few.high
    assert (many.mean, many.low, many.high) == pytest.approx((few.mean, few.low, few.high))
    assert (few.high - few.low) / 2 == pytest.approx(1.96 * np.std(values) / 40**0.5, rel=0.15)
    assert interval([3.0] * 8, range(8)) == Interval(3.0, 3.0, 3.0)
    assert math.isnan(interval([1.0, 2.0], ["one", "one"]).low)
    uneven = interval([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"])
    assert (uneven.mean, uneven.high) == pytest.approx((3.0, 3.0 + 12.7062 * 2))  # Student's t of one degree of freedom


def test_intervals_over_few_drawings_are_as_sure_as_they_say() -> None:
    rng = np.random.default_rng(1)
    for drawings in (3, 5, 10):
        found = [interval(rng.normal(0, 1, drawings).tolist(), range(drawings)) for _ in range(2000)]
        assert np.mean([one.low < 0 < one.high for one in found]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)]
)
def test_share_is_wilsons_interval(successes: int, count: int, low: float, high: float) -> None:
    found = share(successes, count)
    assert (found.mean, found.low, found.high) == pytest.approx((successes / count, low, high), abs=1e-4)


def test_frechet_distance_of_known_normals() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 3))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T  # mean 0, covariance 1, exactly
    assert frechet_distance(x, x, np.eye(3)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, 3 * x + [2, 0, 0], np.eye(3)) == pytest.approx(4 + 3 * (3 - 1) ** 2)
    assert frechet_distance(x, 3 * x + [2, 0, 0], np.eye(3)[:, 1:]) == pytest.approx(2 * (3 - 1) ** 2)


@pytest.mark.parametrize(
    ("relation", "margin", "low", "high", "said"),
    [
        (MORE, 0, 0.1, 0.3, HOLDS),
        (MORE, 0, -0.1, 0.3, NOISE),
        (MORE, 0, -0.3, -0.1, FAILS),
        (LESS, 0, -0.3, -0.1, HOLDS),
        (LESS, 0, 0.1, 0.3, FAILS),
        (NO_LESS, 0.05, -0.04, 0.1, HOLDS),
        (NO_LESS, 0.05, -0.2, 0.1, NOISE),
        (NO_LESS, 0.05, -0.2, -0.1, FAILS),
        (NO_MORE, 0.05, -0.2, 0.04, HOLDS),
        (NO_MORE, 0.05, 0.06, 0.1, FAILS),
        (MORE, 0, math.nan, math.nan, NOISE),
        (NO_LESS, 0.05, math.nan, math.nan, NOISE),
    ],
)
def test_verdicts(relation: str, margin: float, low: float, high: float, said: str) -> None:
    assert judged(Expect("identity", relation, PLAIN, margin), Interval((low + high) / 2, low, high)) == said


# --- rows and subjects ---------------------------------------------------------------------------------------------


def test_what_is_stated_can_be_checked() -> None:
    rows = table()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert len({repr((row.make, row.denoise, row.true)) for row in rows}) == len(rows)
    figures_of_a_cell = {*MEASURES, "concept", "scene", "prompt", "bleed", "leak", "variety"}
    for stated in (e for row in rows for e in row.expects):
        assert stated.than in names
        assert stated.measure in figures_of_a_cell
    assert {row.name for row in chosen(None, quick=True)} < {row.name for row in chosen(None, quick=False)}
    assert [row.name for row in chosen(["LoRA", FULL], quick=False)] == ["LoRA, 60 steps", FULL]
    with pytest.raises(ValueError, match=r"no row's name holds 'nonsense'; there are: .*plain text"):
        chosen(["nonsense"], quick=False)


def test_subjects_are_held_out() -> None:
    held_out = load_held_out()
    assert all((look.concept, look.drawing) in held_out and look.concept in WORDS for look in held_out_looks())
    assert len(unknown_looks()) == len(UNSEEN_CONCEPTS)
    for look in unknown_looks():
        assert {(look.concept, drawing) for drawing in DRAWINGS} <= held_out
        assert look.concept not in WORDS
    assert not {name for name, _ in load_artwork(KINDS)} & {look.concept for look in unknown_looks()}
    assert len({look.concept for look in subjects(USUAL, 10)}) == 10
    assert len(set(subjects(USUAL, 20))) == 20
    with pytest.raises(ValueError, match=r"there are 20 subjects of the usual case, but 21 were asked for"):
        subjects(USUAL, 21)


@pytest.mark.parametrize("name", CHANGES)
def test_changes_keep_the_mask_on_the_subject(name: str) -> None:
    shown = placed(CAT, REFERENCE_SCENE, 256, REFERENCE_SEED, REFERENCE_SIZES)
    picture, mask = as_floats(shown.pixels)[None], as_floats(shown.mask)[None]
    changed, its_mask = CHANGES[name](picture, mask)
    assert changed.shape[:3] == its_mask.shape
    assert not (changed.shape == picture.shape and torch.equal(changed, picture))
    assert 0 <= changed.min() <= changed.max() <= 1
    if name != "dark":
        before, after = (p[m > 0.9].mean(0) for p, m in ((picture, mask), (changed, its_mask)))
        assert torch.allclose(before, after, atol=0.1)  # still the cat's colours under the mask


# --- models of the artist's own ------------------------------------------------------------------------------------


@pytest.fixture
def clip_folder(host: Path, tmp_path: Path) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path / "clip"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    told = {**sizes, "vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 49407}
    config = CLIPConfig(text_config=told, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=16)
    torch.manual_seed(0)
    with torch.inference_mode(False):
        CLIPModel(config).save_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(host / "comfy" / "sd1_tokenizer")
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def dino_folder(host: Path, tmp_path: Path) -> Path:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    folder = tmp_path / "dino"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    with torch.inference_mode(False):
        ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_clip_and_dino_folders(clip_folder: Path, dino_folder: Path) -> None:
    models = LocalModels(clip_folder, dino_folder)
    picture, other = (as_floats(placed(look, SCENE, SIDE, 5).pixels) for look in (CAT, CAR))
    same, unlike = models.score(picture, picture, "cat", SCENE), models.score(picture, other, "cat", SCENE)
    assert list(same) == ["CLIP-T", "CLIP-I", "DINO-I"]
    assert (same["CLIP-I"], same["DINO-I"]) == pytest.approx((1, 1), abs=1e-5)
    assert unlike["CLIP-I"] < 0.9999
    assert unlike["DINO-I"] < 0.9999
    assert unlike["CLIP-T"] == same["CLIP-T"]
    assert models.score(picture, other, "teapot", "snow")["CLIP-T"] != same["CLIP-T"]
    assert -1 <= same["CLIP-T"] <= 1


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--dino expects the folder of a transformers model, but .* no config\.json"):
        LocalModels(None, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"the DINO model in .* cannot be loaded: "):
        LocalModels(None, tmp_path)


# --- a table -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="the mini base is not here")
def test_a_tiny_table_from_end_to_end(host: Path, eye: Eye, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(usual=2, hard=1, scenes=(SCENE,), sampling=Sampling(steps=2))
    bench = Bench(CHECKPOINT, settings, folder=eye.folder, eye=eye)
    rows = {row.name: row for row in table()}
    asked = [(rows[name], USUAL) for name in (PLAIN, FULL, "w_ref 0", "middle blocks", "reference-only")]
    asked += [(rows["image-to-image 0.6"], USUAL), (rows["reference cropped"], USUAL), (rows[PLAIN], HARD)]
    results = run_rows(bench, asked)
    cells = {result.row.name: result.cells for result in results if result.case == USUAL}
    assert cells["w_ref 0"] == cells[PLAIN]  # strength 0 is absence, to the last figure
    assert len({json.dumps(cells[name]) for name in cells}) == len(cells) - 1
    assert all(math.isfinite(cell[name]) for found in cells.values() for cell in found for name in MEASURES)
    assert "concept" not in results[-1].cells[0]  # no judge knows that concept

    found = figures(bench, results, "python3 -m lab measure")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    shown = page(bench, results, found)
    assert "http" not in shown
    assert shown.count("data:image/webp") == len(asked) + 2

    monkeypatch.setattr(Bench, "draw", None)  # what is kept is not drawn again
    again = run_rows(Bench(CHECKPOINT, settings, folder=eye.folder, eye=eye), asked)
    assert [(r.cells, r.frechet) for r in again] == [(r.cells, r.frechet) for r in results]
    bench.settings = Settings(usual=2, hard=1, scenes=("snow",), sampling=Sampling(steps=2))
    assert bench.kept(rows[PLAIN], USUAL) is None
    bench.settings = settings
    changed = WithSubject(weight=3.5)
    assert bench.key(rows[FULL], USUAL) != bench.key(type(rows[FULL])(FULL, "", changed), USUAL)


def test_missing_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure.main(["--weights", str(tmp_path / "none.safetensors")]) == 1
    assert "none.safetensors is missing: `python3 -m lab mini` makes it" in capsys.readouterr().out
