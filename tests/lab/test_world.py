"""The world of individuals: reproducible, true masks and attributes, letters that are never mirrored."""

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest

from lab.world import (
    COLOURS,
    GROUPS,
    KINDS,
    SCENES,
    Individual,
    View,
    all_captions_words,
    caption_of,
    compose,
    compose_wide,
    draw,
    is_held_out,
    sample_individual,
    sample_view,
)
from lab.world.palette import far_apart

each_kind = pytest.mark.parametrize("kind", KINDS)


def plain_view(kind: str, **changes) -> View:
    return View(pose=next(iter(KINDS[kind].poses), ""), **changes)


@each_kind
def test_same_seed_same_bytes(kind):
    def pictures():
        rng = np.random.default_rng(7)
        return [compose(rng, 96, kind=kind), compose(rng, 96, kind=kind, count=2), compose_wide(rng, 96, kind=kind)]

    for first, second in zip(pictures(), pictures(), strict=True):
        assert first.pixels.tobytes() == second.pixels.tobytes()
        assert first.mask.tobytes() == second.mask.tobytes()
        assert (first.caption, first.subjects) == (second.caption, second.subjects)


@each_kind
def test_ten_million_individuals(kind):
    attributes = KINDS[kind].attributes
    painted = sum(attribute.group == "colours" for attribute in attributes)
    colourings = sum(far_apart(some) for some in itertools.permutations(COLOURS, painted))
    others = math.prod(len(attribute.values) for attribute in attributes if attribute.group != "colours")
    assert others * colourings >= 10**7
    assert {attribute.group for attribute in attributes} <= set(GROUPS)
    assert len({attribute.name for attribute in attributes}) == len(attributes)


@each_kind
def test_every_attribute_can_be_seen(kind):
    """Each value of each attribute gives another picture, inside the mask of either."""
    rng = np.random.default_rng(3)
    one, view = sample_individual(rng, kind), plain_view(kind)
    for i, attribute in enumerate(KINDS[kind].attributes):
        values = [(*one.values[:i], value, *one.values[i + 1 :]) for value in range(len(attribute.values))]
        drawings = [draw(Individual(kind, v), view, 110).astype(int) for v in values]
        for k, first in enumerate(drawings):
            for second in drawings[k + 1 :]:
                changed = np.abs(first - second).max(-1) > 24
                assert changed.sum() >= 20, attribute.name  # pixels, of a subject of 110
                assert not changed[(first[..., 3] == 0) & (second[..., 3] == 0)].any()


@each_kind
def test_sampled_colours_are_far_apart(kind):
    rng = np.random.default_rng(5)
    names = [attribute.name for attribute in KINDS[kind].attributes if attribute.group == "colours"]
    for _ in range(50):
        one = sample_individual(rng, kind)
        assert far_apart(one[name] for name in names)


def test_held_out_are_never_sampled_in_training():
    rng = np.random.default_rng(1)
    assert not any(is_held_out(sample_individual(rng)) for _ in range(2000))
    assert all(is_held_out(sample_individual(rng, held_out=True)) for _ in range(50))
    pictures = [compose(rng, 32), compose_wide(rng, 32), compose(rng, 32, held_out=True)]
    assert [is_held_out(picture.subjects[0].individual) for picture in pictures] == [False, False, True]
    robots = [Individual("robot", tuple(int(rng.integers(4)) for _ in range(11))) for _ in range(4000)]
    assert np.mean([is_held_out(robot) for robot in robots]) == pytest.approx(0.1, abs=0.02)


@each_kind
def test_mask_is_where_the_subject_is(kind):
    """The same generator on two scenes: equal under the mask, the scene's own pixels far from it."""
    for seed in range(6):
        on_white, on_bricks = (
            compose(
                np.random.default_rng(seed),
                96,
                kind=kind,
                individual=sample_individual(np.random.default_rng(9), kind),
                scene=scene,
            )
            for scene in ("a white background", "a brick wall")
        )
        assert set(np.unique(on_white.mask)) == {0, 255}
        placed = on_white.subjects[0]
        left, top, right, bottom = placed.box
        drawing = draw(placed.individual, placed.view, right - left)
        assert bottom - top == right - left
        canvas = np.zeros((96 * 3, 96 * 3, 4), np.uint8)
        canvas[96 + top : 96 + bottom, 96 + left : 96 + right] = drawing
        canvas = canvas[96:192, 96:192]
        assert ((canvas[..., 3] >= 128) == (on_white.mask > 0)).all()
        solid = canvas[..., 3] == 255
        for picture in (on_white, on_bricks):
            assert (picture.pixels[picture.mask > 0][solid[picture.mask > 0]] == canvas[..., :3][solid]).all()
        assert (on_white.pixels[canvas[..., 3] == 0] > 225).all()


@each_kind
def test_letters_are_never_mirrored(kind):
    """A mirrored view is the mirror image of everything but the letters, which read as before."""
    one = sample_individual(np.random.default_rng(0), kind)
    if not one.text:
        pytest.skip(f"a {kind} has no letters")
    other = dataclasses.replace(
        one,
        values=tuple(
            (v + 1) % 10 if a.name.startswith("letter") else v
            for a, v in zip(KINDS[kind].attributes, one.values, strict=True)
        ),
    )
    view, mirrored = plain_view(kind), plain_view(kind, mirrored=True)

    def lettering(view):
        """Where two individuals differ that differ in their letters alone."""
        return np.abs(draw(one, view, 240).astype(int) - draw(other, view, 240)).max(-1) > 100

    def likeness(first, second):
        """Intersection over union of two masks at the best shift along the row."""
        shifted = (np.roll(second, shift, 1) for shift in range(-90, 91))
        return max((first & s).sum() / (first | s).sum() for s in shifted)

    first, second = lettering(view), lettering(mirrored)
    assert likeness(first, second) > 0.75
    assert likeness(first, second[:, ::-1]) < likeness(first, second) - 0.1


def test_captions_grammar():
    assert caption_of("robot", "a beach") == "a robot, on a beach"
    assert caption_of("robot", "grass", "orange", "with its arms up") == "an orange robot with its arms up, on grass"
    assert caption_of("car", "snow", count=2) == "two cars, on snow"
    assert caption_of("car", "snow", "red", count=2) == "two red cars, on snow"
    words, rng = all_captions_words(), np.random.default_rng(2)
    captions = [(compose_wide if i % 3 == 0 else compose)(rng, 32) for i in range(300)]
    poses = "|".join(pose for kind in KINDS.values() for pose in kind.poses)
    grammar = re.compile(rf"an? (({'|'.join(COLOURS)}) )?({'|'.join(KINDS)})( ({poses}))?, on ({'|'.join(SCENES)})")
    for picture in captions:
        assert grammar.fullmatch(picture.caption), picture.caption
        assert set(re.findall(r"\w+", picture.caption)) <= words
        named = picture.caption.split(",")[0].split()
        assert picture.subjects[0].individual.kind in named
        assert picture.caption.endswith(picture.scene)
        assert not set(COLOURS) & set(named) or picture.subjects[0].individual.colour in named
    assert 0.2 < np.mean([bool(set(COLOURS) & set(p.caption.split(",")[0].split())) for p in captions]) < 0.4


@pytest.mark.parametrize("scene", SCENES)
def test_scenes_fill_the_picture(scene):
    for side in (32, 96, 128, 256):
        for width in (side, 2 * side):
            picture = SCENES[scene](side, width, np.random.default_rng(0))
            assert picture.shape == (side, width, 3)
            assert -0.05 < picture.min() < picture.max() < 1.2


def test_what_is_asked_for_is_drawn():
    rng = np.random.default_rng(4)
    one = sample_individual(rng, "robot")
    picture = compose(rng, 64, individual=one, scene="snow", pose="with its arms up", count=2)
    assert picture.scene == "snow"
    assert len(picture.subjects) == 2
    assert {(placed.individual, placed.view.pose) for placed in picture.subjects} == {(one, "with its arms up")}
    assert compose_wide(rng, 64).pixels.shape == (64, 128, 3)
    with pytest.raises(ValueError, match="with its arms up"):
        sample_view(rng, "robot", "lying down")
    with pytest.raises(ValueError, match="count 1 or 2"):
        compose(rng, 64, count=3)
