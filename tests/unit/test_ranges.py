"""Numbers where they enter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dreamtuner_core.ranges import check_choice, check_number

REFUSED = {
    "below": (-1, False, "steps must be between 0 and 18446744073709551615, but is -1."),
    "one too many": (2**64, False, "steps must be between 0 and 18446744073709551615, but is 18446744073709551616."),
    "NaN": (math.nan, False, "steps must be between 0 and 18446744073709551615, but is nan."),
    "infinite": (math.inf, False, "steps must be between 0 and 18446744073709551615, but is inf."),
    "not whole": (3.5, True, "steps must be a whole number, but is 3.5."),
    "whole, but of the wrong kind": (3.0, True, "steps must be a whole number, but is 3.0."),
    "a text": ("3", False, "steps must be a number, but is '3'."),
    "a choice": (True, True, "steps must be a whole number, but is True."),
    "nothing": (None, False, "steps must be a number, but is None."),
}


@pytest.mark.parametrize(("value", "whole", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_number_has_one_sentence(value: Any, whole: bool, sentence: str) -> None:
    with pytest.raises(ValueError) as raised:
        check_number("steps", value, 0, 2**64 - 1, whole=whole)
    assert str(raised.value) == sentence


@pytest.mark.parametrize("value", [0, 1.0, 0.5, np.float32(0.25), np.int64(1), math.nextafter(0, 1)])
def test_a_good_number_passes(value: Any) -> None:
    check_number("share", value, 0, 1)
    check_number("count", np.int64(1), 0, 1, whole=True)


def test_what_is_usual_ends_the_sentence() -> None:
    with pytest.raises(ValueError, match=r"is 1e\+06; 2.5 to 3 is usual\.$"):
        check_number("weight", 1e6, 0, 100, usual="; 2.5 to 3 is usual")


def test_an_unknown_choice_is_refused() -> None:
    check_choice("method", "lora", ("lora", "full"))
    with pytest.raises(ValueError, match="method must be one of lora, full, but is 'loha'"):
        check_choice("method", "loha", ("lora", "full"))
