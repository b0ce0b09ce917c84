"""The story: its lines, who is in them, and which earlier pictures each looks at."""

from __future__ import annotations

import pytest

from dreamtuner_core.storyboard import MOST_LINES, Line, StoryboardConfig, previous_of, story

HERO, CAT = 0, 1


def test_blank_lines_are_passed_over_and_always_is_joined() -> None:
    lines = story("a boat\n\n   \n at night ", " oil paint ", "", 1)
    assert lines == [Line("a boat, oil paint", (0,)), Line("at night, oil paint", (0,))]


@pytest.mark.parametrize(
    ("line", "text", "who"),
    [
        ("in the rain", "in the rain", (HERO, CAT)),
        ("hero: in the rain", "in the rain", (HERO,)),
        ("Cat : asleep", "asleep", (CAT,)),
        ("cat, hero: on a roof: at night", "on a roof: at night", (HERO, CAT)),
        ("the next morning: a street", "the next morning: a street", (HERO, CAT)),
        ("12:30 on the clock tower", "12:30 on the clock tower", (HERO, CAT)),
        ("hero: at 12:30", "at 12:30", (HERO,)),
        ("hero:2 cups", "2 cups", (HERO,)),
        ("\ufeffhero: in the rain\r", "in the rain", (HERO,)),
        ("hero\uff1a\u5c4b\u6839", "\u5c4b\u6839", (HERO,)),
        ("cat\u3001hero\uff1aon a roof", "on a roof", (HERO, CAT)),
    ],
)
def test_a_line_says_who_is_in_it(line: str, text: str, who: tuple[int, ...]) -> None:
    assert story(line, "", "hero, cat", 2) == [Line(text, who)]


def test_a_name_may_have_spaces() -> None:
    assert story("the  old  man: in the rain", "", " The old man , cat", 2) == [Line("in the rain", (HERO,))]


def test_without_names_a_colon_is_text() -> None:
    assert story("hero: in the rain", "", "", 2) == [Line("hero: in the rain", (HERO, CAT))]


@pytest.mark.parametrize(
    ("prompts", "names", "sentence"),
    [
        ("", "", "prompts is blank"),
        (" \n\t\n", "", "prompts is blank"),
        ("x\n" * (MOST_LINES + 1), "", "at most 64 lines, but prompts has 65"),
        ("a\nhreo: runs", "hero, cat", "line 2 begins with 'hreo:'"),
        ("hero, dog: runs", "hero, cat", "line 1 begins with 'hero, dog:'"),
        ("hero:", "hero, cat", "line 1 has names but no text"),
        ("a\n" + "b" * 5000, "", "line 2 must have at most 4000 characters, but has 5000"),
        ("a", "hero, cat, dog", "names must be at most 2 different names"),
        ("a", "cat, cat", "names must be at most 2 different names"),
    ],
)
def test_bad_stories_are_refused_in_a_sentence(prompts: str, names: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        story(prompts, "", names, 2)
    assert len(str(error.value).splitlines()) == 1


def test_most_lines_are_taken() -> None:
    assert len(story(f"{'x' * 200}\n\r\n" * MOST_LINES, "", "", 1)) == MOST_LINES


def test_one_subject_looks_at_the_picture_before() -> None:
    lines = story("a\nb\nc", "", "", 1)
    assert [previous_of(lines, i) for i in range(3)] == [[], [0], [1]]


def test_nobody_slips_in_from_an_earlier_picture() -> None:
    lines = story("hero: a\ncat: b\nhero, cat: c\nhero: d\ncat: e\nhero, cat: f", "", "hero, cat", 2)
    assert [previous_of(lines, i) for i in range(6)] == [[], [], [0, 1], [0], [1], [3, 4]]


def test_seeds() -> None:
    assert [StoryboardConfig(seed=5).seed_of(i) for i in range(3)] == [5, 5, 5]
    counting = StoryboardConfig(seed=2**64 - 1, seeds="counting up")
    assert [counting.seed_of(i) for i in range(2)] == [2**64 - 1, 0]


@pytest.mark.parametrize(
    "bad", [{"first_weight": -1}, {"previous_weight": float("nan")}, {"first_weight": 101.0}, {"seeds": "random"}]
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        StoryboardConfig(**bad)
