"""So many broken files, of every kind in turn: prints what is no plain refusal, and how long the slowest took."""

import sys

from .run import fuzz

count, seed = (int(number) for number in (*sys.argv[1:], "2000", "0")[:2])
found = fuzz(count, seed, say=print)
print("\n".join(found) or f"{count} broken files: each was read, or refused in one sentence")
sys.exit(bool(found))
