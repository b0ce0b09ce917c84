"""`python3 -m lab.world OUT.png [side]`: a sheet of individuals, views and wide pictures to look at."""

import sys

import numpy as np
from PIL import Image

from . import KINDS, compose, compose_wide

COLUMNS = 10


def sheet(side: int, seed: int = 0) -> np.ndarray:
    """Two rows a kind: individuals, then one individual's views and wide pictures of others."""
    rng = np.random.default_rng(seed)
    rows = []
    for kind in KINDS:
        pictures = [compose(rng, side, kind=kind) for _ in range(COLUMNS)]
        rows.append(np.concatenate([picture.pixels for picture in pictures], 1))
        one = pictures[0].subjects[0].individual
        views = [compose(rng, side, individual=one).pixels for _ in range(4)]
        wide = [compose_wide(rng, side, kind=kind).pixels for _ in range(3)]
        rows.append(np.concatenate(views + wide, 1))
    return np.concatenate(rows, 0)


if __name__ == "__main__":
    Image.fromarray(sheet(int(sys.argv[2]) if len(sys.argv) > 2 else 128)).save(sys.argv[1])
