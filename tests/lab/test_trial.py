"""The small trial: what it asks, what it counts, and the page; the drawing itself in tests/server/test_trial_run.py."""

from __future__ import annotations

import errno
import html.parser
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreamtuner_core.lock import locked
from lab.trial import figures
from lab.trial.__main__ import main
from lab.trial.page import written
from lab.trial.plan import Page, Plan, parse
from lab.trial.record import Record, Shot
from lab.trial.studio import TUNED, Studio

HERE = Path(__file__).resolve().parents[2] / "lab" / "trial"
PROMPTS = "a teapot on a table\n\n  a blue teapot in the snow \n"


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Options of a trial whose files are there."""
    (tmp_path / "model.safetensors").write_bytes(b"x" * 2**20)
    (tmp_path / "prompts.txt").write_text(PROMPTS, encoding="utf-8")
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "pot.png")
    named = {"checkpoint": "model.safetensors", "reference": "pot.png", "prompts": "prompts.txt"}
    return [x for name, file in named.items() for x in (f"--{name}", str(tmp_path / file))] + ["--class", "teapot"]


def score(likeness: float, faults: list[str] | None = None, passed: bool = True) -> dict[str, Any]:
    return {"likeness": likeness, "faults": faults or [], "passed": passed, "failures": []}


def record(plan: Plan, folder: Path) -> Record:
    """Two prompts, two seeds; with the pack three of four are good, and one is cut off."""
    made = Record(folder, setup=31.4, memory=2 * 2**30, host="0.3.75", device="cpu")
    likeness = {"before": (0.5, 0.6, 0.5, 0.7), "after": (0.8, 0.9, 0.65, 0.95), "tuned": (0.9, 0.9, 0.9, 0.9)}
    for way in plan.ways:
        for i, value in enumerate(likeness[way]):
            file = f"{way}_{i}.png"
            Image.new("RGB", (64, 64), (40 * i, 90, 160)).save(folder / file)
            faults = ["cut off"] if (way, i) == ("after", 0) else []
            made.shots.append(
                Shot(way, i // 2, 1000 + i % 2, file, 9.0 if i == 0 else 3.0, i == 0, score(value, faults))
            )
    return made


def test_what_is_asked(files: list[str]) -> None:
    plan, page = parse([*files, "--seeds", "2", "--minutes-by-hand", "90", "--lang", "ja"])
    assert plan.prompts == ("a teapot on a table", "a blue teapot in the snow")
    assert (plan.ways, plan.side, page.minutes_by_hand, page.language) == (("before", "after"), 512, 90, "ja")
    assert parse([*files, "--tune", "300"])[0].ways == ("before", "after", "tuned")


def test_the_small_test_model_by_default() -> None:
    plan, page = parse([])
    assert plan.side == 128
    assert all("robot" in prompt for prompt in plan.prompts)
    assert page.minutes_by_hand is None  # nobody is there to be asked, and nothing is made up


def test_another_trial_has_another_key(files: list[str]) -> None:
    assert parse(files)[0].key == parse(files)[0].key
    assert parse(files)[0].key != parse([*files, "--steps", "3"])[0].key


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--checkpoint", "none.safetensors"], "there is no file none.safetensors"),
        (["--reference", "none.png"], "there is no file none.png"),
        (["--prompts", "none.txt"], "cannot be read"),
        (["--class", "mug"], "prompt 1 does not name the mug"),
        (["--class", " "], "--class is empty"),
        (["--seeds", "0"], "--seeds must be between 1 and 64"),
        (["--min-likeness", "0.5"], "needs --clip-vision"),
        (["--until", "tomorrow"], "--until must be a day"),
        (["--until", "20301231"], "--until must be a day"),
        (["--class", "tea\udcffpot"], "the class word must be plain text"),
        (["--class", "embedding:teapot"], "the class word must be plain words"),
        (["--owner", "\udcff"], "--owner must be plain text, but has the character U+DCFF"),
        (["--uses", "\x1b[31m"], "--uses must be plain text"),
        (["--owner", "x" * 10**6], "--owner must have at most 4000 characters"),
        (["--negative", "a\0b"], "--negative must be plain text"),
        (["--scheduler", "x\udc80"], "--scheduler must be plain text"),
        (["--side", "0"], "--side must be between 64 and 4096, but is 0"),
        (["--cfg", "nan"], "--cfg must be between 0 and 100, but is nan"),
        (["--min-likeness", "nan"], "--min-likeness must be between 0 and 1, but is nan"),
        (["--out", "."], "--out must be a file, but . is a folder"),
        (["--minutes-by-hand", "-3"], "must be above 0"),
        (["--minutes-by-hand", "nan"], "must be above 0"),
    ],
)
def test_every_bad_option_has_a_sentence(files: list[str], options: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        parse([*files, *options])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b" \n\n", "has 0"),
        (b"a teapot\n" * 65, "has 65"),
        (b"\xff\xfe\xfa", "not UTF-8"),
        (b"teapot " * 200, "letters"),
        (b"a\0 teapot", "prompt 1 must be plain text"),
    ],
)
def test_every_bad_prompt_file_has_a_sentence(files: list[str], tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        parse([*files, "--prompts", str(tmp_path / "bad.txt")])


def test_good_is_sound_and_better_than_all_without_the_pack(files: list[str], tmp_path: Path) -> None:
    plan = parse([*files, "--seeds", "2"])[0]
    made = record(plan, tmp_path)
    after = figures.way("after", made, plan)
    assert [s.file for s in after.good] == [
        "after_1.png",
        "after_3.png",
    ]  # 0 is cut off, 2 is no better than a plain one
    assert after.seconds == 3.0  # the first one also loads the model
    assert after.rate.mean == 0.5
    assert 0.1 < after.rate.low < 0.2
    assert figures.chance(plan) == pytest.approx(1 / 3)
    assert figures.machine_minutes(after) == pytest.approx(3 / 60 / 0.5)
    assert [s.file for s in figures.by_likeness(after.shots)] == [
        "after_3.png",
        "after_1.png",
        "after_2.png",
        "after_0.png",
    ]
    assert figures.machine_minutes(replace(after, good=[])) is None


def test_with_a_threshold_the_gate_decides(files: list[str], tmp_path: Path) -> None:
    plan = replace(parse(files)[0], clip_vision="dino.safetensors", min_likeness=0.6)
    made = record(plan, tmp_path)
    made.shots[4].score = score(0.9, passed=False)
    assert not figures.is_good(made.shots[4], made, plan)
    assert figures.is_good(made.shots[0], made, plan)
    assert figures.chance(plan) is None


def test_a_trial_that_is_running_is_not_run_twice(files: list[str], tmp_path: Path) -> None:
    plan, folder = parse(files)[0], tmp_path / "trial"
    studio = Studio(plan, folder)
    with locked(folder / "lock", ""), pytest.raises(ValueError, match="is running already; wait until it ends"):
        studio.run()


def test_a_record_goes_on(files: list[str], tmp_path: Path) -> None:
    plan = parse(files)[0]
    made = record(plan, tmp_path)
    made.write()
    assert Record.read(tmp_path) == made
    (tmp_path / "after_1.png").unlink()
    assert len(Record.read(tmp_path).shots) == len(made.shots) - 1  # drawn again
    (tmp_path / "record.json").write_text("{half", encoding="utf-8")
    assert Record.read(tmp_path) == Record(tmp_path)


def test_a_full_disk_leaves_nothing_half_written(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever file is the one that has no room: one sentence, and the next run goes on."""
    plan = parse(files)[0]
    folder, out = tmp_path / "trial", tmp_path / "out.html"
    studio = Studio(plan, folder)
    studio.record = record(plan, folder)
    studio.record.write()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shot = Image.effect_noise((300, 300), 90).convert("RGB")
    monkeypatch.setattr(Path, "write_text", lambda self, text, **_: full(self, text.encode()))
    monkeypatch.setattr(Image.Image, "save", lambda self, path, *_: full(path, self.tobytes()))
    for write in (studio.record.write, lambda: studio._keep(shot, "after_0.png")):
        with pytest.raises(OSError, match="No space left"):
            write()
    monkeypatch.setattr("lab.trial.__main__.HOME", tmp_path)
    monkeypatch.setattr(Studio, "run", lambda self: studio.record)
    monkeypatch.setattr("lab.trial.page.written", lambda *_: "x" * 4096)
    assert main([*files, "--minutes-by-hand", "9", "--out", str(out)]) == 1
    assert "because the disk is full; make room and run the same line again" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not out.exists()
    assert Record.read(folder) == studio.record


def full(path: Path, content: bytes) -> None:
    path.write_bytes(content[: len(content) // 2])
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_learned_word_is_named_wherever_the_class_is(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("A Teapot, blue\na teapot of teapots, teapot\n", encoding="utf-8")
    studio = Studio(parse([*files, "--tune", "3"])[0], tmp_path / "trial")
    word = f"embedding:{TUNED}"
    assert studio._prompt("tuned", 0) == f"A Teapot {word}, blue"
    assert studio._prompt("tuned", 1) == f"a teapot {word} of teapots, teapot {word}"
    assert studio._prompt("after", 0) == "A Teapot, blue"


class Reader(html.parser.HTMLParser):
    """The text of a page, what it fetches, and whether each element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.open, self.links = "", list[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open[-1:] != ["style"] else ""


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_page_is_whole_and_fetches_nothing(files: list[str], tmp_path: Path, language: str) -> None:
    plan = parse([*files, "--seeds", "2", "--owner", "A <b> & Co", "--until", "2020-01-01"])[0]
    made = record(plan, tmp_path)
    words = json.loads((HERE / f"{language}.json").read_text(encoding="utf-8"))
    seen = Reader(written(plan, Page(language, 90.0, tmp_path / "x.html"), made))
    assert seen.open == []
    assert all(link.startswith("data:image/jpeg;base64,") for link in seen.links)
    assert len(seen.links) == 1 + 4 + 8  # reference, best and worst with their plain ones, and all
    assert "A <b> & Co" in seen.text
    assert words["ended"] in seen.text
    assert words["closer_of"].format(good=2, all=4, rate="50 %", low="15 %", high="85 %") in seen.text
    assert words["saving"].format(minutes="90") in seen.text
    assert "{" not in seen.text


def test_nothing_is_made_up(files: list[str], tmp_path: Path) -> None:
    plan = parse([*files, "--seeds", "2"])[0]
    made = record(plan, tmp_path)
    made.memory = 0
    words = json.loads((HERE / "en.json").read_text(encoding="utf-8"))
    text = Reader(written(plan, Page("en", None, tmp_path / "x.html"), made)).text
    assert "by hand are not known" in text
    assert words["no_rights"] in text
    assert words["no_figure"] in text
    for shot in made.shots:
        shot.score = score(0.1)
    assert words["no_good"] in Reader(written(plan, Page("en", 90.0, tmp_path / "x.html"), made)).text


def test_both_languages_say_the_same() -> None:
    def fields(words: dict[str, Any]) -> dict[str, Any]:
        return {
            name: sorted(re.findall(r"{(\w+)}", value))
            if isinstance(value, str)
            else (list(value) if isinstance(value, dict) else len(value))
            for name, value in words.items()
        }

    english, japanese = (json.loads((HERE / f"{name}.json").read_text(encoding="utf-8")) for name in ("en", "ja"))
    assert fields(english) == fields(japanese)


def test_an_order_alone_never_says_that_pictures_are_good_enough(files: list[str], tmp_path: Path) -> None:
    plan = parse([*files, "--seeds", "2", "--tune", "5"])[0]
    made = record(plan, tmp_path)
    tuned = figures.way("tuned", made, plan)
    assert len(tuned.good) == len(tuned.shots)
    assert figures.next_step(tuned, plan) == "look"
    assert figures.next_step(tuned, replace(plan, clip_vision="dino.safetensors", min_likeness=0.5)) == "pilot"
