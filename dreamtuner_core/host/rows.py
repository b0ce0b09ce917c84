"""Which row of a batch belongs to which conditioning and image, at the U-Net's input and at its layers.

This is determined at each layer and never assumed: other packs cut images into tiles, fold rows, add rows to one side,
or call a layer with some of the rows. If it is ambiguous, the run stops with an error.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .options import PART, SIDES, WIDENED, Options, grid, values

NEGATIVE = 1  # the place of the negative conditioning, as the host's guiders ask
UNKNOWN = -1  # picture


class Row(NamedTuple):
    """chunk: index of the call's conditioning. picture: index in the host's batch, or UNKNOWN."""

    chunk: int
    picture: int


def rows_of_call(count: int, chunks: int, pictures: int, context: Tensor | None = None) -> list[Row]:
    """The rows of one call of the U-Net, in order.

    count: rows. chunks: conditionings. pictures: the size of the host's batch. context: [count, ...], the rows' texts.
    The host sends c c u u. Packs that send several tiles at once send c u c u: all rows of one tile, then those of the
    next. Raises ValueError, in one sentence, if it is ambiguous.
    """
    each, rest = divmod(count, chunks)
    if rest:
        raise ValueError(
            f"DreamTuner: expected the same number of rows for each of {chunks} conditionings, but the model is called "
            f"with {count} rows; remove the node that adds rows to the batch."
        )
    if chunks > 1 and each > pictures and each % pictures == 0 and _tile_by_tile(chunks, each // pictures, context):
        tiles = each // pictures
        return [Row(c, p) for _ in range(tiles) for c in range(chunks) for p in range(pictures)]
    return [Row(c, i if each == pictures else UNKNOWN) for c in range(chunks) for i in range(each)]


def _tile_by_tile(chunks: int, tiles: int, context: Tensor | None) -> bool:
    """Whether tiles are outermost, found from the texts: each row has that of its conditioning and picture."""
    if context is None or context.shape[0] % (tiles * chunks):
        return True
    by_tile, by_chunk = context.unflatten(0, (tiles, -1)), context.unflatten(0, (chunks, tiles, -1))
    if torch.equal(by_tile, by_tile[:1].expand_as(by_tile)):
        return True  # also if the texts of all sides are equal, because all packs with tiles use this order
    if torch.equal(by_chunk, by_chunk[:, :1].expand_as(by_chunk)):
        return False
    raise ValueError(
        f"DreamTuner: expected {tiles} tiles of each picture with the same texts, but they have different texts; "
        "use a tile batch of 1, or remove the tiling node."
    )


class Group(NamedTuple):
    """Rows of a layer that share one call.

    whos: what each of them reads, or only one if they all read the same. part: their index in the layer's input.
    rows: their rows in the batch.
    """

    whos: tuple[Any, ...]
    part: slice | Tensor
    rows: tuple[int, ...]


def itself(who: Hashable) -> Hashable:
    return who


class Batch:
    """The rows of one call of the U-Net, found again at its layers. sides: of each conditioning at its input."""

    def __init__(self, rows: Sequence[Row], sides: Sequence[int]) -> None:
        self.rows, self.sides = list(rows), list(sides)
        self._whole: Tensor | None = None
        self._groups: dict[Hashable, tuple[list[Group], Tensor | None]] = {}  # most layers have the same ones

    def at(self, x: Tensor, options: Options, whos: Sequence[Hashable]) -> list[int]:
        """For each row of x [R, N, C], a layer's input: which row of the batch it is.

        whos: what each conditioning reads; rows that read the same need no distinction. Raises ValueError, in one
        sentence, if it is ambiguous.
        """
        count = len(self.rows)
        if x.shape[0] == count:
            self._whole = x
            return list(range(count))
        found = self._folded(x, options) or self._widened(x, options, whos) or self._part(x, options, whos)
        if found is None and len(set(whos)) > 1:
            raise ValueError(
                f"DreamTuner: expected the {count} rows of the batch at a layer, but another node calls it "
                f"with {x.shape[0]} without marking them; remove that node, or the subject."
            )
        return found or [0] * x.shape[0]

    def by_who(
        self,
        x: Tensor,
        options: Options,
        whos: Sequence[Hashable],
        read: Callable[[Group], Tensor],
        alike: Callable[[Any], Hashable] = itself,
    ) -> Tensor:
        """A layer's output for x [R, N, C], in the order of its rows: one call of `read` for all rows that read alike.

        whos: what each conditioning reads. alike: equal for rows that can share a call; by default those that read the
        same.
        """
        rows = tuple(self.at(x, options, whos))
        key = (rows, tuple(whos), alike, x.device)
        if key not in self._groups:
            self._groups[key] = self._grouped(*key)
        groups, order = self._groups[key]
        parts = [read(group) for group in groups]
        if len(parts) == 1:
            return parts[0]
        joined = torch.cat(parts)
        return joined if order is None else joined[order]

    def _grouped(
        self,
        rows: Sequence[int],
        whos: Sequence[Hashable],
        alike: Callable[[Any], Hashable],
        device: torch.device,
    ) -> tuple[list[Group], Tensor | None]:
        """The groups, and the order that puts their rows where they were; None if they are."""
        together: dict[Hashable, list[int]] = {}
        for here, row in enumerate(rows):
            together.setdefault(alike(whos[self.rows[row].chunk]), []).append(here)
        groups = []
        for some in together.values():
            of_batch = tuple(rows[i] for i in some)
            reading = tuple(whos[self.rows[row].chunk] for row in of_batch)
            reading = reading if len(set(reading)) > 1 else reading[:1]
            groups.append(Group(reading, _selection(some, device), of_batch))
        order = [i for some in together.values() for i in some]
        return groups, None if order == sorted(order) else torch.tensor(order, device=device).argsort()

    def _folded(self, x: Tensor, options: Options) -> list[int] | None:
        """Each row in several with fewer tokens, one after the other, as HyperTile does."""
        times, rest = divmod(x.shape[0], len(self.rows))
        tokens = grid(options)
        if rest or tokens is None or x.shape[1] >= tokens[0] * tokens[1]:
            return None
        return [i // times for i in range(x.shape[0])]

    def _widened(self, x: Tensor, options: Options, whos: Sequence[Hashable]) -> list[int] | None:
        """More rows than in the batch: some sides, or all, are repeated (regional prompts do this)."""
        chunks = len(self.sides)
        each, rest = divmod(len(self.rows), chunks)
        segments, more = divmod(x.shape[0], each)
        if rest or more or segments <= chunks:
            return None
        negative = self.sides.count(NEGATIVE)
        possible = []
        if negative < chunks and (segments - negative) % (chunks - negative) == 0:
            times = (segments - negative) // (chunks - negative)
            possible.append([1 if side == NEGATIVE else times for side in self.sides])
        if segments % chunks == 0:
            possible.append([segments // chunks] * chunks)
        named = [names for key in (WIDENED, SIDES) if len(names := values(options, key)) == segments]
        if named and len(set(self.sides)) == chunks and set(named[0]) == set(self.sides):
            return [self.sides.index(side) * each + i for side in named[0] for i in range(each)]
        if named:
            marks = [side == NEGATIVE for side in named[0]]
            possible = [
                n for n in possible if marks == [s == NEGATIVE for s, m in zip(self.sides, n) for _ in range(m)]
            ]
        found = [self._repeated(times, each) for times in possible]
        meanings = {tuple(whos[self.rows[i].chunk] for i in rows) for rows in found}
        return found[0] if len(meanings) == 1 else None

    def _marks(self, times: Sequence[int]) -> list[bool]:
        return [side == NEGATIVE for side, n in zip(self.sides, times) for _ in range(n)]

    def _repeated(self, times: Sequence[int], each: int) -> list[int]:
        return [c * each + i for c, n in enumerate(times) for _ in range(n) for i in range(each)]

    def _part(self, x: Tensor, options: Options, whos: Sequence[Hashable]) -> list[int] | None:
        """Some of the rows of this layer's last full call, known by their values or named by the caller."""
        named, whole = values(options, PART), self._whole
        if x.shape[0] > len(self.rows) or whole is None or whole.shape[1:] != x.shape[1:]:
            return None
        if len(named) == x.shape[0] and max(named) < len(whole) and torch.equal(whole[named], x):
            return named
        found = []
        for row in x:
            same = [i for i, other in enumerate(whole) if torch.equal(row, other)]
            if len({whos[self.rows[i].chunk] for i in same}) != 1:
                return None
            found.append(same[0])
        return found


def _selection(rows: list[int], device: torch.device) -> slice | Tensor:
    """The rows as an index: a slice, which copies nothing, if they are consecutive."""
    if rows == list(range(rows[0], rows[-1] + 1)):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows, device=device)


class Spot(NamedTuple):
    """The position of a row: its picture, and height, width, top and left in latents. A tile may wrap at the edge."""

    picture: int
    height: int
    width: int
    top: int
    left: int


def find(tile: Tensor, pictures: Tensor) -> Spot | None:
    """Where that tile [C, h, w] was cut out of the pictures [B, C, H, W]; None if it was not, or was changed."""
    height, width = tile.shape[-2:]
    if height > pictures.shape[-2] or width > pictures.shape[-1]:
        return None
    corner = (pictures == tile[:, :1, :1]).all(dim=1)  # [B, H, W]
    for picture, top, left in torch.nonzero(corner).tolist():
        if torch.equal(cut(pictures[picture], height, width, top, left), tile):
            return Spot(picture, height, width, top, left)
    return None


def cut(x: Tensor, height: int, width: int, top: int, left: int) -> Tensor:
    """The part of x [..., H, W] from that corner on, wrapped at the edges: [..., height, width]."""
    rows = (top + torch.arange(height, device=x.device)) % x.shape[-2]
    columns = (left + torch.arange(width, device=x.device)) % x.shape[-1]
    return x.index_select(-2, rows).index_select(-1, columns)
