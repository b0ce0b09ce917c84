"""The reader and the scores where the answer is known, the statistics, and one tiny table from end to end."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lab import measure
from lab.demo import CHECKPOINT
from lab.measure import outside, scores, teach
from lab.measure.bench import Bench, Settings, run_rows, values
from lab.measure.cast import ASKED_SCENES, REFERENCE_SCENE, WHITE, Ask, Case, cases, strangers
from lab.measure.changes import CHANGES
from lab.measure.local_models import LocalModels
from lab.measure.outside import OutsideJudge, Scale
from lab.measure.peers import _with_fidelity
from lab.measure.reader import GRID, SPOTS, UNASKED, Reading, asked_of, questions
from lab.measure.report import figures, markdown, page, sheet
from lab.measure.rows import ATTENTION, LESS, MORE, NO_LESS, NO_MORE, PLAIN, Expect, Plain, Row, WithSubject
from lab.measure.statistics import Interval, interval, share
from lab.measure.studio import Sampling
from lab.measure.table import chosen, sweep, table
from lab.measure.teach import Confusion, Lessons, Taught, augmented, composed, confusion, frequency, right, title
from lab.measure.tuned import with_word
from lab.measure.verdicts import FAILS, HOLDS, NOISE, judged
from lab.world import KINDS, SCENES, compose, is_held_out

SIDE = 128
ROBOT = Case(list(KINDS).index("robot"), seed=1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():  # as measure runs
        yield
    torch.set_num_threads(threads)


def unchanged(pictures: Tensor) -> Tensor:
    return pictures


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    with torch.inference_mode(False):
        return composed(256, 1)


@pytest.fixture(scope="module")
def taught(lessons: Lessons) -> Taught:
    """A reader that has seen few pictures for a few steps: it tells scenes apart, and little else."""
    with torch.inference_mode(False), torch.enable_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(teach, "BATCH", 32)
        reader = teach.taught(lessons, steps=40)
    return Taught(reader, confusion(reader, composed(64, 2, held_out=True, leaves=unchanged)), "a test's")


# --- the reader ----------------------------------------------------------------------------------------------------


def test_every_attribute_is_asked_of_its_kind_alone() -> None:
    for kind in KINDS.values():
        asked = [questions()[number] for number in asked_of(kind.word)]
        names = [question.name for question in asked]
        assert names[:3] == ["kind", "scene", "count"]
        assert set(names[3:]) == {a.name for a in kind.attributes} | ({"pose"} if kind.poses else set())
        assert all(question.kind in ("", kind.word) for question in asked)


def test_lessons_answer_what_they_show(lessons: Lessons) -> None:
    rng = np.random.default_rng(1)
    picture = compose(rng, SIDE, count=2 if rng.random() < teach.PAIRS else 1)
    individual, asked = picture.subjects[0].individual, asked_of(lessons.kinds[0])
    told = {questions()[q].name: questions()[q].answers[a] for q, a in zip(asked, lessons.labels[0]) if a != UNASKED}
    assert told["kind"] == individual.kind
    assert told["scene"] == picture.scene
    if len(picture.subjects) == 1:
        assert {name: told[name] for name in told if name in {a.name for a in KINDS[individual.kind].attributes}} == {
            a.name: individual[a.name] for a in KINDS[individual.kind].attributes
        }
    assert np.array_equal(lessons.pictures[0].movedim(0, -1).numpy(), picture.pixels)
    assert set(lessons.spots[0].unique().tolist()) == {0, SPOTS.index(picture.scene)}


def test_spliced_pictures_have_two_backgrounds_and_no_scene(lessons: Lessons) -> None:
    behind = [set(spots.unique().tolist()) - {0} for spots in lessons.spots]
    spliced = [i for i, found in enumerate(behind) if len(found) > 1]
    assert len(spliced) > 20
    assert (lessons.labels[spliced, 1] == UNASKED).all()
    whole = [i for i, found in enumerate(behind) if len(found) == 1 and lessons.labels[i, 1] != UNASKED]
    assert all(behind[i] == {SPOTS.index(list(SCENES)[int(lessons.labels[i, 1])])} for i in whole)


def test_augmentation_moves_pictures_and_spots_together() -> None:
    torch.manual_seed(0)
    picture = torch.zeros(1, 3, SIDE, SIDE)
    picture[:, :, 40:90, 30:80] = 0.8
    spots = (torch.nn.functional.interpolate(picture[:, :1], [GRID] * 2, mode="area")[:, 0] > 0.4).byte()
    for _ in range(8):
        moved, where = augmented(picture, spots)
        bright = torch.nn.functional.interpolate(moved[:, :1], [GRID] * 2, mode="area")[:, 0] > 0.4
        assert (bright == (where > 0)).float().mean() > 0.95


def test_a_reader_learns_and_is_kept(taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert right(taught.confusion, "scene") > 0.5  # one in thirteen by chance
    pictures = torch.stack([torch.from_numpy(ROBOT.true(ask, SIDE).pixels) / 255 for ask in ROBOT.asks])
    reading = taught.reader.read(pictures, ["robot"] * 3)
    for answers in reading.answers:
        assert {a.name for a in KINDS["robot"].attributes} < set(answers)
        assert all(answers[a.name] in a.values for a in KINDS["robot"].attributes)
    assert reading.subject.shape == (3, GRID, GRID)
    assert torch.allclose(reading.around.sum(1), torch.ones(3))

    monkeypatch.setattr(teach, "taught", lambda *_: taught.reader)
    kept = teach.kept_reader(tmp_path, "one", unchanged, pictures=4, steps=1, tests=8)
    monkeypatch.setattr(teach, "composed", None)  # what is kept is not taught again
    again = teach.kept_reader(tmp_path, "one", unchanged, pictures=4, steps=1, tests=8)
    assert again.confusion == kept.confusion
    assert again.reader.read(pictures, ["robot"] * 3).answers == reading.answers
    with pytest.raises(TypeError):  # another autoencoder, another confusion
        teach.kept_reader(tmp_path, "other", unchanged, pictures=4, steps=1, tests=8)


def test_confusion_gives_right_and_chance() -> None:
    found = {"car, wheel": {"red": {"red": 8, "blue": 2}, "blue": {"blue": 9, "red": 1}}}
    assert right(found, "car, wheel") == pytest.approx(0.85)
    assert frequency(found, "car, wheel", "red") == pytest.approx(0.45)
    assert frequency(found, "car, wheel", "green") == 0


# --- scores --------------------------------------------------------------------------------------------------------


def perfect(kind: str) -> Confusion:
    """Of a reader that errs never, where each value is as frequent as the others."""
    return {title(kind, a.name): {value: {value: 5} for value in a.values} for a in KINDS[kind].attributes}


def answers_of(case: Case) -> dict[str, str]:
    return {a.name: case.individual[a.name] for a in KINDS[case.kind].attributes}


def test_kept_is_one_for_itself_and_none_by_chance() -> None:
    found = perfect("robot")
    own = scores.kept(ROBOT, ROBOT.asks[0], answers_of(ROBOT), found)
    assert set(own) == {"kept", *scores.PARTS}
    assert list(own.values()) == pytest.approx([1] * len(own))
    rng = np.random.default_rng(0)
    others = [
        scores.kept(ROBOT, ROBOT.asks[0], {a.name: rng.choice(a.values) for a in KINDS["robot"].attributes}, found)
        for _ in range(3000)
    ]
    for name in own:
        assert np.mean([one[name] for one in others]) == pytest.approx(0, abs=0.03)


def test_kept_counts_letters_one_by_one_and_not_what_the_text_names() -> None:
    kind, case = next(
        (k, Case(i, 1)) for i, k in enumerate(KINDS.values()) if any("letter" in a.name for a in k.attributes)
    )
    letters = [a for a in kind.attributes if a.name.startswith("letter")]
    answers = answers_of(case)
    answers[letters[0].name] = next(v for v in letters[0].values if v != case.individual[letters[0].name])
    found = scores.kept(case, case.asks[0], answers, perfect(kind.word))
    chance = 1 / len(letters[0].values)
    assert found["letters"] == pytest.approx((len(letters) - 1 - len(letters) * chance) / (len(letters) * (1 - chance)))
    assert found["colours"] == pytest.approx(1)
    assert found["letters"] <= found["marks"] < 1

    answers = answers_of(case) | {kind.main_colour: "another"}
    named = Ask("grass", colour=case.individual.colour)
    assert scores.kept(case, named, answers, perfect(kind.word))["colours"] == pytest.approx(1)
    assert scores.kept(case, Ask("grass"), answers, perfect(kind.word))["colours"] < 1


def test_what_the_reader_cannot_read_does_not_count() -> None:
    found, name = perfect("robot"), KINDS["robot"].attributes[0].name
    found[title("robot", name)] = {
        value: {KINDS["robot"].attributes[0].values[0]: 5} for value in KINDS["robot"].attributes[0].values
    }
    answers = answers_of(ROBOT) | {name: "nothing of it"}
    assert scores.kept(ROBOT, Ask("grass"), answers, found)["kept"] == pytest.approx(1)


def test_text_is_what_was_asked_for() -> None:
    seen = answers_of(ROBOT) | {"kind": "robot", "scene": "grass", "count": "1", "pose": KINDS["robot"].poses[0]}
    assert scores.text(ROBOT, Ask("grass"), seen) == {"kind": 1, "scene": 1, "count": 1, "text": 1}
    asked = Ask("snow", pose=KINDS["robot"].poses[1], colour=ROBOT.individual.colour)
    found = scores.text(ROBOT, asked, seen)
    assert (found["scene"], found["pose"], found["colour"]) == (0, 0, 1)
    assert found["text"] == pytest.approx(3 / 5)
    other = scores.text(ROBOT, Ask("grass", colour="no colour of it"), seen)
    assert other["recolour"] == 0
    assert other["text"] == 1  # to change its colour is not held against a method that keeps it
    assert scores.text(ROBOT, Ask("grass", number=2), seen)["count"] == 0


def test_leak_and_size_know_the_references_place() -> None:
    own = scores.small(ROBOT.reference.mask).float()
    places = [scores.small(ROBOT.true(ROBOT.asks[0], SIDE, seed).mask).float() for seed in range(300, 324)]
    around = torch.zeros(1, len(SCENES))
    around[0, list(SCENES).index(REFERENCE_SCENE)], around[0, list(SCENES).index(WHITE)] = 0.2, 0.1
    there = scores.surroundings(ROBOT, Reading([], own[None], around), 0)
    assert there["leak"] == pytest.approx(1)
    assert there["size"] < 0.95  # in its reference it is smaller
    assert there["bleed"] == pytest.approx(0.3)
    elsewhere = [scores.surroundings(ROBOT, Reading([], place[None], around), 0) for place in places]
    assert abs(np.mean([one["leak"] for one in elsewhere])) < 0.1
    assert np.mean([one["size"] for one in elsewhere]) == pytest.approx(1, abs=0.08)


def test_blur_is_less_crisp() -> None:
    picture = ROBOT.true(ROBOT.asks[0], SIDE)
    sharp, mask = scores.batch([picture.pixels]), scores.small(picture.mask)[None].float()
    soft = torch.nn.functional.avg_pool2d(sharp.movedim(-1, 1), 3, 1, 1).movedim(1, -1)
    assert scores.crispness(soft, mask) < 0.8 * scores.crispness(sharp, mask)


def test_the_outside_judge_tells_individuals_apart() -> None:
    judge = OutsideJudge()

    def seen(pictures: list) -> Tensor:
        masks = torch.stack([scores.small(picture.mask).float() for picture in pictures])
        return judge.features(scores.batch([picture.pixels for picture in pictures]), masks)

    own = [ROBOT.true(ROBOT.asks[i % 2], SIDE, 50 + i) for i in range(4)]
    scale = Scale(seen(own), seen(list(strangers("robot", SIDE, 4))))
    same, other = seen([ROBOT.true(ROBOT.asks[0], SIDE, 60), ROBOT.true(ROBOT.asks[0], SIDE, 60, other=True)])
    assert scale.score(same) > scale.score(other) + 0.3


def test_a_missing_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"the judge needs the packages efficientnet-lite-pytorch"):
        outside.OutsideJudge()


# --- who is drawn --------------------------------------------------------------------------------------------------


def test_individuals_are_held_out_and_a_larger_table_holds_the_smaller() -> None:
    few, many = cases(8, seed=1), cases(24, seed=1)
    assert many[:8] == few
    assert [case.individual for case in cases(8, seed=1)] == [case.individual for case in few]
    assert all(is_held_out(case.individual) for case in many)
    assert {case.kind for case in many[: len(KINDS)]} == set(KINDS)
    assert len({case.individual for case in many}) == 24
    assert cases(8, seed=2)[0].individual != few[0].individual


def test_what_is_asked_is_not_what_the_reference_shows() -> None:
    for case in cases(24, seed=1):
        shown, asks = case.reference, case.asks
        assert shown.scene == REFERENCE_SCENE
        assert shown.subjects[0].individual == case.individual
        box = shown.subjects[0].box
        assert min(box) >= 0
        assert max(box) <= shown.pixels.shape[0]
        assert len({ask.scene for ask in asks}) == len(asks)
        assert all(ask.scene in ASKED_SCENES for ask in asks)
        assert asks[0].pose != shown.subjects[0].view.pose or not KINDS[case.kind].poses
        assert asks[2].number == len(case.true(asks[2], SIDE).subjects) == 2
        assert asks[0].caption(case.kind).endswith(f"{asks[0].pose}, on {asks[0].scene}".lstrip())
    own = [case.asks[1].colour == case.individual.colour for case in cases(32, seed=1)]
    assert sum(own) == 16  # the others are asked for in another colour


def test_true_pictures_are_of_it_or_of_another_of_its_kind() -> None:
    ask = ROBOT.asks[0]
    own, other = ROBOT.true(ask, SIDE), ROBOT.true(ask, SIDE, other=True)
    assert own.subjects[0].individual == ROBOT.individual != other.subjects[0].individual
    assert own.scene == other.scene == ask.scene
    assert own.subjects[0].view.pose == ask.pose
    assert not np.array_equal(own.pixels, ROBOT.true(ask, SIDE, seed=1).pixels)


@pytest.mark.parametrize("name", CHANGES)
def test_changes_keep_the_mask_on_the_subject(name: str) -> None:
    shown = ROBOT.reference
    picture, mask = scores.batch([shown.pixels]), torch.from_numpy(shown.mask)[None] / 255
    changed, its_mask = CHANGES[name](picture, mask)
    assert changed.shape[:3] == its_mask.shape
    assert not (changed.shape == picture.shape and torch.equal(changed, picture))
    assert 0 <= changed.min() <= changed.max() <= 1
    if name != "dark":
        before, after = (p[m > 0.9].mean(0) for p, m in ((picture, mask), (changed, its_mask)))
        assert torch.allclose(before, after, atol=0.1)  # still the robot's colours under the mask


def test_a_tuned_subjects_word_stands_for_one_and_for_two() -> None:
    phrase = "car embedding:x"
    assert with_word("a red car, on a road", "car", phrase) == "a red car embedding:x, on a road"
    assert with_word("two cars, on grass", "car", phrase) == "two cars embedding:x, on grass"


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


def test_intervals_over_few_individuals_are_as_sure_as_they_say() -> None:
    rng = np.random.default_rng(1)
    for individuals in (3, 5, 10):
        found = [interval(rng.normal(0, 1, individuals).tolist(), range(individuals)) for _ in range(2000)]
        assert np.mean([one.low < 0 < one.high for one in found]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)]
)
def test_share_is_wilsons_interval(successes: int, count: int, low: float, high: float) -> None:
    found = share(successes, count)
    assert (found.mean, found.low, found.high) == pytest.approx((successes / count, low, high), abs=1e-4)


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


# --- rows ----------------------------------------------------------------------------------------------------------


def test_what_is_stated_can_be_checked() -> None:
    rows = table()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert {PLAIN, ATTENTION, "S-S-A + encoder + guidance", "tuned"} <= set(names)
    known = {"kept", *scores.PARTS, "text", "bleed", "leak", "size", "sharpness", "outside"}
    for stated in (e for row in rows for e in row.expects):
        assert stated.than in names
        assert stated.measure in known
    assert {row.name for row in chosen(None, quick=True)} < {row.name for row in chosen(None, quick=False)}
    assert [row.name for row in chosen(["DreamBooth LoRA", ATTENTION], quick=False)] == [
        ATTENTION,
        "DreamBooth LoRA, 60 steps",
    ]
    with pytest.raises(ValueError, match=r"no row's name holds 'nonsense'; there are: .*plain text"):
        chosen(["nonsense"], quick=False)


def test_style_fidelity_mixes_in_what_read_no_reference(host: Path) -> None:
    from comfy.ldm.modules.attention import optimized_attention

    q, own, read = (torch.randn(4, n, 8, generator=torch.Generator().manual_seed(n)) for n in (5, 5, 7))
    k, options = torch.cat([own, read], 1), {"n_heads": 2, "cond_or_uncond": [1, 0]}
    both, alone = optimized_attention(q, k, k, 2), optimized_attention(q, own, own, 2)
    found = _with_fidelity(0.25)(q, k, k, options)
    assert torch.allclose(found[2:], both[2:], atol=1e-6)  # the wanted rows read all
    assert torch.allclose(found[:2], 0.25 * alone[:2] + 0.75 * both[:2], atol=1e-6)


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
    picture, other = scores.batch([case.true(case.asks[0], SIDE).pixels for case in cases(2, seed=1)])
    same, unlike = (models.score(picture, reference, "a robot, on grass") for reference in (picture, other))
    assert list(same) == ["CLIP-T", "CLIP-I", "DINO-I"]
    assert (same["CLIP-I"], same["DINO-I"]) == pytest.approx((1, 1), abs=1e-5)
    assert unlike["CLIP-I"] < 0.9999
    assert unlike["DINO-I"] < 0.9999
    assert unlike["CLIP-T"] == same["CLIP-T"]
    assert models.score(picture, other, "a mug, on snow")["CLIP-T"] != same["CLIP-T"]
    assert -1 <= same["CLIP-T"] <= 1


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--dino expects the folder of a transformers model, but .* no config\.json"):
        LocalModels(None, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"the DINO model in .* cannot be loaded: "):
        LocalModels(None, tmp_path)


# --- a table -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="the mini base is not here")
def test_a_tiny_table_from_end_to_end(
    host: Path, taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = replace(taught, confusion={name: rows for kind in KINDS for name, rows in perfect(kind).items()})
    settings = Settings(individuals=2, sampling=Sampling(steps=2))
    bench = Bench(CHECKPOINT, settings, folder=tmp_path, taught=taught)
    rows = {row.name: row for row in table()}
    absent = Row("w_ref 0", "", WithSubject(0.0))
    names = ("true pictures", PLAIN, ATTENTION, sweep(3.0, 1.0), "reference-only, bare", "ACN, fidelity 0.5, cut-out")
    asked = [
        *(rows[name] for name in names),
        absent,
        rows["image-to-image 0.6"],
        replace(rows["reference cut"], most=1),
    ]
    results = run_rows(bench, asked)
    found = {result.row.name: values(result, "outside") for result in results}
    assert found["w_ref 0"] == found[PLAIN]  # strength 0 is absence, to the last figure
    assert len({json.dumps(one) for one in found.values()}) == len(asked) - 1
    assert len(results[-1].cells) == 1
    assert all(math.isfinite(cell[name]) for r in results for cell in r.cells for name in ("kept", "text", "leak"))

    told = figures(bench, results, "python3 -m lab measure")
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    by_name = {row["row"]: row for row in told["rows"]}
    assert by_name[PLAIN]["kept"] == pytest.approx(np.mean(list(values(results[1], "kept").values())), abs=1e-4)
    low, high = by_name[PLAIN]["intervals"]["kept"]
    assert low <= by_name[PLAIN]["kept"] <= high
    assert by_name["w_ref 0"]["against plain text"]["kept"] == [0, 0, 0]
    shown = page(results, told)
    assert "http" not in shown
    assert shown.count("data:image/webp") == len(asked)
    assert markdown(told).count("\n") == len(asked) + 2
    assert sheet(bench, results, [PLAIN, ATTENTION]).height > 3 * 96

    monkeypatch.setattr(Bench, "draw", None)  # what is kept is not drawn again
    again = run_rows(Bench(CHECKPOINT, settings, folder=tmp_path, taught=taught), asked)
    assert [r.cells for r in again] == [r.cells for r in results]
    larger = Bench(CHECKPOINT, replace(settings, individuals=3), folder=tmp_path, taught=taught)
    assert [case.number for case in larger.missing(rows[PLAIN])] == [2]
    assert len(larger.missing(Row(PLAIN, "", WithSubject(3.5)))) == 3
    larger.settings = replace(settings, seed=2)
    assert larger.key(rows[PLAIN]) != bench.key(rows[PLAIN])
    assert bench.key(Row("", "", Plain())) == bench.key(rows[PLAIN])


def test_missing_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure.main(["--weights", str(tmp_path / "none.safetensors")]) == 1
    assert "none.safetensors is missing: `python3 -m lab mini` makes it" in capsys.readouterr().out
