"""Texts from outside: what is let in, and how it is shown."""

from __future__ import annotations

import pytest

from dreamtuner_core.files import plain_json
from dreamtuner_core.texts import checked_class_word, checked_day, checked_name, checked_text, reason, shown


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("rex", "rex"),
        ("a\x1b[31mred\nline", "a\ufffd[31mred line"),
        ("a\ud800b\u202etxt", "a\ufffdb\ufffdtxt"),
        ("x" * 100, "x" * 77 + "..."),
        ("犬 Möpschen", "犬 Möpschen"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
        (None, "None"),
        ((1,) * 300_000, ("1, " * 40)[:76] + "..."),
    ],
)
def test_foreign_text_is_fit_to_be_shown(given: object, wanted: str) -> None:
    said = shown(given)
    assert len(said) <= 80
    assert said.replace("\u200c", "").isprintable()
    assert said.encode()
    assert said == wanted or (isinstance(given, tuple) and said.endswith("..."))


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (PermissionError(13, "Permission denied", "/home/eve/x"), "Permission denied"),
        (ValueError("no file '/home/eve x/a.bin' there"), "no file ... there"),
        (ValueError("C:\\Users\\eve\\a.bin: broken"), "... broken"),
        (ValueError('in "D:/eve/my models", 3/4 of a/b'), "in ..., 3/4 of a/b"),
        (OSError(), "OSError"),
        (AssertionError("a\x1b[31m\nb"), "a\ufffd[31m b"),
    ],
)
def test_a_reason_holds_no_absolute_path(error: BaseException, wanted: str) -> None:
    assert reason(error) == wanted


def test_texts_are_checked() -> None:
    assert checked_text("owner", "Ada\u200d 犬\n\ttwo\r\n") == "Ada\u200d 犬\n\ttwo\r\n"
    for odd, why in (("a\ud800", "U\\+D800"), ("\x1b[0m", "U\\+001B"), ("x" * 4001, "at most 4000"), (b"x", "a bytes")):
        with pytest.raises(ValueError, match=f"^owner must .*{why}"):
            checked_text("owner", odd)
    for check in (checked_name, checked_class_word):
        with pytest.raises(ValueError, match="plain text"):
            check("a\ud800b")
        with pytest.raises(ValueError, match="must be a text"):
            check(["x"])  # type: ignore[arg-type]
    for file in ("rex.safetensors", "rex.PT", "rex.bin"):
        with pytest.raises(ValueError, match="without the ending of a file"):
            checked_name(file)
    assert checked_name("rex.v2") == "rex.v2"


def test_a_day_is_written_in_one_way_on_every_python() -> None:
    assert [checked_day("until", day) for day in ("2030-12-31", "")] == ["2030-12-31", ""]
    for odd in ("soon", "20301231", "2030-W01-1", "2030-1-1", "2030-12-31 ", "\uff12030-12-31"):
        with pytest.raises(ValueError, match=r"^until must be a day written like 2030-12-31, or empty"):
            checked_day("until", odd)


def test_json_of_strangers() -> None:
    assert plain_json('{"a": [1]}') == {"a": [1]}
    for odd in (None, "", "{", "[" * 100_000, "1" * 2_000_000, "9" * 5000, 7):
        assert plain_json(odd) is None  # type: ignore[arg-type]
