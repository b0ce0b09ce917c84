"""Run the mutants whose names hold one of the words given; all without words."""

import sys

from .mutant import table
from .tuning import MUTANTS

words = sys.argv[1:]
sys.exit(table([m for m in MUTANTS if not words or any(word in m.name for word in words)]) > 0)
