"""Broken files of every kind that the pack reads: some in the suite, a million with `python -m tests.fuzz 1000000`."""
