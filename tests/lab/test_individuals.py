"""Individuals: what makes one car differ from another in the training pictures, and what they leave as it is."""

import numpy as np
import pytest
from PIL import Image

from lab.mini import compose, individuals
from lab.mini.artwork import ARCHIVE, training_artwork
from lab.mini.individuals import bend, individual, paint_pattern, turn_hue
from lab.mini.scenes import SCENES

DRAWING = training_artwork(ARCHIVE)["automobile"][0]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def alpha(image: Image.Image) -> np.ndarray:
    return np.asarray(image.getchannel("A")).astype(int)


def test_the_same_generator_gives_the_same_individual_and_others_others() -> None:
    one, again = individual(DRAWING, generator(3)), individual(DRAWING, generator(3))
    assert one.tobytes() == again.tobytes()
    assert len({individual(DRAWING, generator(seed)).tobytes() for seed in range(20)}) > 15


def test_colours_change_and_the_outline_stays() -> None:
    for changed in (turn_hue(DRAWING, 0.3, 0.2), paint_pattern(DRAWING, generator())):
        assert np.array_equal(alpha(changed), alpha(DRAWING))
        difference = np.asarray(changed).astype(int) - np.asarray(DRAWING).astype(int)
        assert np.abs(difference[alpha(DRAWING) > 0]).mean() > 8
    assert turn_hue(DRAWING, 0).getchannel("A").tobytes() == DRAWING.getchannel("A").tobytes()


def test_bending_without_amplitude_only_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(individuals, "STRETCH", 1.0)
    monkeypatch.setattr(individuals, "BEND", 1e-9)
    same = bend(DRAWING, generator())
    assert np.abs(alpha(same.crop(same.getchannel("A").getbbox())) - alpha(DRAWING)).mean() < 3


def test_bending_changes_the_outline_and_cuts_nothing_off() -> None:
    for seed in range(20):
        bent = bend(DRAWING, generator(seed))
        outline = alpha(bent)
        assert not outline[[0, -1]].any()
        assert not outline[:, [0, -1]].any()
        assert 0.5 < (outline > 128).sum() / (alpha(DRAWING) > 128).sum() < 2


def test_repeated_drawings_are_one_individual(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(compose, "pose", lambda image, size, rng: seen.append(image.tobytes()) or image.resize((9, 9)))
    picture = compose.compose({"car": [DRAWING]}, 64, generator(), repeated=1.0)
    assert picture.caption.startswith("two cars, on ")
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_a_wide_picture_shows_one_individual_twice_and_says_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, pose = [], compose.pose

    def watched(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
        seen.append((image.tobytes(), size))
        return pose(image, size, rng)

    monkeypatch.setattr(compose, "pose", watched)
    picture = compose.compose_wide({"car": [DRAWING]}, {}, 64, generator())
    assert picture.pixels.shape == (64, 128, 3)
    assert picture.caption.startswith("a car, on ")
    assert seen[0][0] == seen[1][0]
    for (_, size), half in zip(seen, (picture.mask[:, :64], picture.mask[:, 64:])):
        rows, columns = (np.flatnonzero((half > 0).any(axis=axis)) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == pytest.approx(size, abs=2)
        assert size >= compose.ALONE[0] * 64


def test_wide_pictures_show_mostly_other_kinds() -> None:
    pictures = [compose.compose_wide({"car": [DRAWING]}, {"cat": [DRAWING]}, 64, generator(i)) for i in range(200)]
    share = np.mean(["car" in picture.caption for picture in pictures])
    assert share == pytest.approx(compose.NAMED, abs=0.1)


@pytest.mark.parametrize("scene", SCENES)
def test_scenes_are_as_wide_as_asked(scene: str) -> None:
    for width in (64, 128):
        painted = SCENES[scene](64, width, generator())
        assert painted.shape == (64, width, 3)
        assert -0.2 < painted.min() <= painted.max() < 1.3
