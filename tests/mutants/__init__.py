"""Planted bugs, each of which a named test must find: run by hand with `python -m tests.mutants [word ...]`."""

from . import pretraining, reading, sampling, tuning

ALL = [*reading.MUTANTS, *sampling.MUTANTS, *tuning.MUTANTS, *pretraining.MUTANTS]
