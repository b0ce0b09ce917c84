"""Draw Storyboard in the host: what is drawn, what is kept, and what is refused."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
import pytest
import torch
from dreamtuner_pack.dreamtuner_core.host import storyboard as room
from dreamtuner_pack.dreamtuner_core.host.settings import NEGATIVE_WEIGHT
from dreamtuner_pack.nodes.storyboard import DrawStoryboard
from graph import attend, empty_latent, hard_mask, shared_model, subject
from torch import Tensor
from tuning_world import EMBEDDINGS, TinyVAE, shared_clip

import nodes

NODE = type("Run", (DrawStoryboard,), {"hidden": SimpleNamespace(unique_id=None)})
STORY = "a dog\na dog on a hill\na dog at night"
FAMILIES = ("sd1", "sd2", "sdxl")
SAMPLING = {"seed": 3, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal"}
NOT_LINKED: dict[str, Any] = {"always": "", "first_weight": 3.0, "previous_weight": 1.5, "seeds": "same"}


@dataclass
class Desk:
    """What is linked to the node, and a count of what it samples."""

    family: str = "sd1"
    drawn: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = shared_model(self.family).clone()  # a story of its own
        self.clip, self.vae, self.subject = shared_clip(self.family), TinyVAE(), subject(self.family, hard_mask())
        self.negative = self.text("")

    def text(self, words: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(words))

    def draw(self, prompts: str = STORY, **more: Any) -> Tensor:
        """The pictures; `drawn` then holds how many lines were sampled."""
        inputs: dict[str, Any] = {"model": self.model, "clip": self.clip, "vae": self.vae, "subject": self.subject}
        inputs |= {"negative": self.negative, "prompts": prompts, "width": 64, "height": 96}
        before = len(self.drawn)
        try:
            return NODE.execute(**{**inputs, **NOT_LINKED, **SAMPLING, **more}).args[0]
        finally:
            self.new = len(self.drawn) - before

    def single(self, words: str, **more: Any) -> Tensor:
        """The same picture by Apply Self-Subject Attention, KSampler and VAE Decode."""
        given = {**SAMPLING, **more}
        model = attend(self.model, self.subject, negative_weight=NEGATIVE_WEIGHT)
        latent = nodes.common_ksampler(
            model, *(given[name] for name in SAMPLING), self.text(words), self.negative, empty_latent()
        )[0]
        return nodes.VAEDecode().decode(self.vae, latent)[0]


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny models draw noise, in which nobody is found: say where to look."""
    EMBEDDINGS[:] = []
    monkeypatch.setattr(room, "found_in", lambda picture: hard_mask(*picture.shape[1:3]))


@pytest.fixture(params=FAMILIES)
def desk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk, sample = Desk(request.param), comfy.sample.sample

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        desk.drawn.append(1)
        return sample(*args, **kwargs)

    monkeypatch.setattr(comfy.sample, "sample", counted)
    return desk


sd1 = pytest.mark.parametrize("desk", ["sd1"], indirect=True)


def test_previous_weight_zero_is_single_pictures(desk: Desk) -> None:
    pictures = desk.draw(previous_weight=0.0)
    for picture, words in zip(pictures, STORY.splitlines(), strict=True):
        assert torch.equal(picture, desk.single(words)[0])


def test_later_pictures_look_at_the_one_before(desk: Desk) -> None:
    alone, chained = desk.draw(previous_weight=0.0), desk.draw()
    assert torch.equal(chained[0], alone[0])
    for i in (1, 2):
        assert not torch.allclose(chained[i], alone[i], atol=1e-3)


@sd1
def test_counting_up_is_a_seed_higher_each_line(desk: Desk) -> None:
    pictures = desk.draw(previous_weight=0.0, seeds="counting up")
    for i, words in enumerate(STORY.splitlines()):
        assert torch.equal(pictures[i], desk.single(words, seed=SAMPLING["seed"] + i)[0])


@sd1
def test_the_same_story_is_not_drawn_again(desk: Desk) -> None:
    first = desk.draw()
    assert desk.new == 3
    assert torch.equal(desk.draw(), first)
    assert desk.new == 0


@sd1
def test_kept_pictures_are_those_that_would_be_drawn(desk: Desk) -> None:
    desk.draw()
    changed = desk.draw(STORY.replace("at night", "at noon"))
    room._kept.clear()
    assert torch.equal(desk.draw(STORY.replace("at night", "at noon")), changed)


@pytest.mark.parametrize(("line", "chained", "alone"), [(0, 3, 1), (1, 2, 1), (2, 1, 1)])
@sd1
def test_a_changed_line_draws_itself_and_what_follows(desk: Desk, line: int, chained: int, alone: int) -> None:
    lines = STORY.splitlines()
    lines[line] += ", blue"
    for weight, expected in ((1.5, chained), (0.0, alone)):
        room._kept.clear()
        before = desk.draw(previous_weight=weight)
        after = desk.draw("\n".join(lines), previous_weight=weight)
        assert desk.new == expected
        assert torch.equal(after[:line], before[:line])


@sd1
def test_everything_that_a_line_depends_on_draws_it_again(desk: Desk) -> None:
    two = "a dog\na dog at night"
    desk.draw(two)
    for change in (
        {"always": "ink"},
        {"first_weight": 2.0},
        {"seed": 4},
        {"steps": 1},
        {"cfg": 4.0},
        {"sampler_name": "heun"},
        {"scheduler": "karras"},
        {"width": 96},
        {"latent": {"samples": torch.ones(1, 4, 12, 8)}},
        {"model": desk.model.clone()},
        {"vae": TinyVAE()},
        {"subject": subject("sd1", hard_mask())},
        {"negative": desk.text("")},
    ):
        desk.draw(two, **change)
        assert desk.new == 2, change
    desk.draw(two, previous_weight=2.0)
    assert desk.new == 1  # the first line has none before it
    desk.draw(two, seeds="counting up")
    assert desk.new == 1


@sd1
def test_an_interrupt_keeps_the_lines_that_are_done(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = desk.draw()
    room._kept.clear()

    def stop(done: int, *_: Any, **__: Any) -> None:
        if done == 3:  # the first step of the second line
            raise comfy.model_management.InterruptProcessingException

    with monkeypatch.context() as patch:
        patch.setattr(comfy.utils.ProgressBar, "update_absolute", lambda bar, value, *a, **k: stop(value))
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            desk.draw()
    assert torch.equal(desk.draw(), whole)
    assert desk.new == 2


@sd1
def test_progress_counts_lines_and_steps(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    bars: list[tuple[int, bool]] = []
    monkeypatch.setattr(room, "say", lambda text, node_id: told.append(text))
    monkeypatch.setattr(
        comfy.utils.ProgressBar,
        "update_absolute",
        lambda bar, value, total=None, preview=None: bars.append((value, preview is not None)),
    )
    monkeypatch.setattr(room.latent_preview, "get_previewer", lambda *_: Previewer())
    desk.draw("a\nb")
    assert told[0] == "line 1 of 2, step 1 of 2"
    assert told[-1] == "line 2 of 2, step 2 of 2"
    assert [value for value, _ in bars] == sorted(value for value, _ in bars)
    assert bars[0] == (1, True)
    assert bars[-1][0] == 4


class Previewer:
    def decode_latent_to_preview_image(self, kind: str, x0: Tensor) -> Any:
        assert x0.shape[0] == 1
        return kind, x0, 512


@sd1
def test_two_subjects_and_who_is_in_a_line(desk: Desk) -> None:
    cat = subject("sd1", hard_mask(), seed=21)
    story = "hero: a dog\ncat: a cat\nhero, cat: a dog and a cat"
    more = {"subject_2": cat, "names": "hero, cat", "previous_weight": 0.0}
    pictures = desk.draw(story, **more)
    assert torch.equal(pictures[0], desk.single("a dog")[0])
    assert not torch.equal(pictures[1], desk.single("a cat")[0])
    desk.draw(story, **{**more, "subject_2": subject("sd1", hard_mask(), seed=22)})
    assert desk.new == 2, "the line without the cat is kept"


@sd1
def test_nobody_found_leaves_the_subject_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "found_in", lambda picture: None)
    for picture, words in zip(desk.draw(), STORY.splitlines(), strict=True):
        assert torch.equal(picture, desk.single(words)[0])


@sd1
def test_the_model_is_left_as_it_was(desk: Desk) -> None:
    before = desk.single("a dog")
    desk.draw()
    assert torch.equal(desk.single("a dog"), before)
    assert desk.model.get_attachment("dreamtuner") is None


@sd1
def test_bad_input_is_a_sentence(desk: Desk) -> None:
    for bad, sentence in (
        ({"prompts": " \n"}, "prompts is blank"),
        ({"prompts": "x\n" * 65}, "65"),
        ({"first_weight": float("nan")}, "first_weight"),
        ({"latent": {"samples": torch.zeros(2, 4, 8, 8)}}, "batch of 2"),
        ({"subject": subject("sd2")}, "caption"),
        ({"names": "a, b"}, "names must be at most 1 different"),
    ):
        with pytest.raises(ValueError, match=f"^Draw Storyboard: .*{sentence}") as error:
            desk.draw(**bad)
        assert len(str(error.value).splitlines()) == 1


def test_kept_latents_are_bounded() -> None:
    kept = room.KeptLatents(limit=3 * 16)
    for i in range(4):
        kept.put(i, torch.zeros(4), None)
        kept.get(0)
    assert [i for i in range(4) if kept.get(i) is not None] == [0, 2, 3]


@sd1
def test_kept_latents_go_with_the_model(desk: Desk) -> None:
    desk.draw()
    assert desk.model in room._kept
    model = weakref.ref(desk.model)
    desk.model = shared_model("sd1").clone()
    gc.collect()  # a run leaves circles
    assert model() is None, "kept latents hold no model"
    assert not room._kept
