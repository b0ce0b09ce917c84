"""Run the mutants whose names, files or tests hold one of the words given; all without words."""

import sys

from . import ALL
from .mutant import table

words = sys.argv[1:]
wanted = [m for m in ALL if not words or any(word in text for word in words for text in (m.name, m.file, m.tests))]
sys.exit(table(wanted) > 0)
