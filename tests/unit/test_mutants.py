"""The list of planted bugs is kept up: each line that one changes is there, once."""

from __future__ import annotations

import pytest

from tests.mutants import ALL
from tests.mutants.mutant import ROOT, Mutant


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_a_line_that_is_there(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.old != mutant.new
    assert (ROOT / mutant.tests.split("::")[0]).is_file()


def test_no_two_mutants_are_one() -> None:
    assert len({(m.file, m.old, m.new) for m in ALL}) == len({m.name for m in ALL}) == len(ALL)
