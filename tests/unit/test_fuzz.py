"""Whatever is wrong with a file, it is read or refused in one sentence."""

from __future__ import annotations

from tests.fuzz.run import fuzz


def test_a_broken_file_is_read_or_refused_in_one_sentence() -> None:
    assert not fuzz(2000)
