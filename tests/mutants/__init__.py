"""Planted bugs, each of which a named test must find: run by hand with `python -m tests.mutants [word ...]`."""
