"""Who is who at a layer, by a table of row layouts: what is named, what is found, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dreamtuner_pack.dreamtuner_core.host.rows import UNKNOWN, Batch, Group, Row, Spot, cut, find, rows_of_call
from torch import Tensor

C, U, E = "wanted", "unwanted", "empty"


def texts(*rows: int) -> Tensor:
    """[rows, 3, 4]: one text for each number."""
    return torch.tensor(rows).float()[:, None, None].expand(-1, 3, 4).contiguous()


CALLS: dict[str, tuple[tuple[Any, ...], list[tuple[int, int]]]] = {
    # (rows, conditionings, pictures, texts) -> (conditioning, picture) of each row
    "c u": ((2, 2, 1, texts(1, 2)), [(0, 0), (1, 0)]),
    "c c u u": ((4, 2, 2, texts(1, 1, 2, 2)), [(0, 0), (0, 1), (1, 0), (1, 1)]),
    "c alone": ((3, 1, 3, texts(1, 1, 1)), [(0, 0), (0, 1), (0, 2)]),
    "c u e": ((3, 3, 1, texts(1, 2, 3)), [(0, 0), (1, 0), (2, 0)]),
    "two tiles: c u c u": ((4, 2, 1, texts(1, 2, 1, 2)), [(0, 0), (1, 0), (0, 0), (1, 0)]),
    "two tiles of two pictures": (
        (8, 2, 2, texts(1, 1, 2, 2, 1, 1, 2, 2)),
        [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (0, 1), (1, 0), (1, 1)],
    ),
    "tiles within each side: c c u u": (
        (4, 2, 1, texts(1, 1, 2, 2)),
        [(0, UNKNOWN), (0, UNKNOWN), (1, UNKNOWN), (1, UNKNOWN)],
    ),
    "tiles, the same text on both sides": ((4, 2, 1, texts(1, 1, 1, 1)), [(0, 0), (1, 0), (0, 0), (1, 0)]),
    "a window of the frames": ((4, 2, 5, texts(1, 1, 2, 2)), [(0, UNKNOWN)] * 2 + [(1, UNKNOWN)] * 2),
}


@pytest.mark.parametrize("name", CALLS)
def test_at_the_door(name: str) -> None:
    call, expected = CALLS[name]
    assert rows_of_call(*call) == [Row(*row) for row in expected]


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="each of 2 conditionings, but the model is called with 3 rows"):
        rows_of_call(3, 2, 1, texts(1, 1, 2))


def test_tiles_with_texts_of_their_own_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 tiles of each picture with the same texts"):
        rows_of_call(4, 2, 1, texts(1, 2, 3, 4))


def layer(rows: int, tokens: int = 6, same: bool = False) -> Tensor:
    x = torch.randn(rows, tokens, 4, generator=torch.Generator().manual_seed(0))
    return x[:1].expand_as(x).contiguous() if same else x


GRID = {"activations_shape": [2, 4, 2, 3]}  # 6 tokens
SIDES: dict[str, tuple[list[int], list[str]]] = {
    "c u": ([0, 1], [C, U]),
    "u c": ([1, 0], [U, C]),
    "c u e": ([0, 1, 2], [C, U, E]),
    "c c' u": ([0, 0, 1], [C, C, U]),
}
# sides, rows of each, input of the layer, options -> who each of its rows is
LAYERS: dict[str, tuple[str, int, Tensor, dict[str, Any], list[str]]] = {
    "as at the door": ("c u", 2, layer(4), {}, [C, C, U, U]),
    "the negative first": ("u c", 2, layer(4), {}, [U, U, C, C]),
    "three sides": ("c u e", 1, layer(3), {}, [C, U, E]),
    "folded in two (HyperTile)": ("c u", 2, layer(8, tokens=3), {}, [C] * 4 + [U] * 4),
    "folded and merged": ("c u", 1, layer(6, tokens=1), {}, [C] * 3 + [U] * 3),
    "the wanted side twice": ("c u", 1, layer(3), {}, [C, C, U]),
    "the wanted side twice, the negative first": ("u c", 2, layer(6), {}, [U, U, C, C, C, C]),
    "three times, named": ("c u", 1, layer(4), {"cond_or_uncond_couple": [0, 0, 0, 1]}, [C, C, C, U]),
    "three times, changed in place": ("c u", 1, layer(4), {"cond_or_uncond": [0, 0, 0, 1]}, [C, C, C, U]),
    "both sides twice, named": ("c u", 1, layer(4), {"cond_or_uncond_couple": [0, 0, 1, 1]}, [C, C, U, U]),
    "both sides twice, in turn": ("c u", 1, layer(4), {"cond_or_uncond": [0, 1, 0, 1]}, [C, U, C, U]),
    "the wanted side twice, not together": ("c u", 1, layer(3), {"cond_or_uncond_couple": [0, 1, 0]}, [C, U, C]),
    "three sides twice, named": ("c u e", 1, layer(6), {"cond_or_uncond": (0, 0, 1, 1, 2, 2)}, [C, C, U, U, E, E]),
    "sides in a tensor": ("c u", 1, layer(4), {"cond_or_uncond": torch.tensor([0, 0, 0, 1])}, [C, C, C, U]),
    "sides in a tuple": ("c u", 1, layer(4), {"cond_or_uncond_couple": (0, 0, 0, 1)}, [C, C, C, U]),
    "part in a tensor": ("c u", 2, layer(4)[2:], {"ref_uncond_idxs": torch.tensor([2, 3])}, [U, U]),
    "all but the negative, three sides": ("c u e", 1, layer(5), {"cond_or_uncond": [0, 0, 1, 0, 0]}, [C, C, U, E, E]),
    "two wanted texts, twice": ("c c' u", 1, layer(5), {"cond_or_uncond": [0, 0, 0, 0, 1]}, [C, C, C, C, U]),
    "the unwanted rows alone, named": ("c u", 2, layer(4)[2:], {"ref_uncond_idxs": [2, 3]}, [U, U]),
    "the wanted rows alone, found": ("c u", 2, layer(4)[:2], {}, [C, C]),
    "some rows in another order, found": ("c u", 2, layer(4)[[3, 0]], {}, [U, C]),
    "named wrongly, found": ("c u", 2, layer(4)[:2], {"ref_uncond_idxs": [2, 3]}, [C, C]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_at_the_layer(name: str) -> None:
    sides, each, x, options, expected = LAYERS[name]
    places, whos = SIDES[sides]
    count = each * len(places)
    batch = Batch(rows_of_call(count, len(places), each), places)
    batch.at(layer(count), GRID, whos)  # the call for all rows that comes before one for some
    found = batch.at(x, {"cond_or_uncond": places} | GRID | options, whos)
    assert [whos[batch.rows[i].chunk] for i in found] == expected


REFUSED: dict[str, tuple[str, Tensor, bool, dict[str, Any]]] = {
    "twice both, or thrice the one": ("c u", layer(4), False, {}),
    "some of rows that are equal": ("c u", layer(1, same=True), True, {}),
    "rows never seen": ("c u", 5 + layer(1), False, {}),
    "five for three": ("c u e", layer(4), False, {}),
    "named by numbers of its own": ("c u", layer(3), False, {"cond_or_uncond_couple": [1, 2, 3]}),
    "named as nothing that can be": ("c c' u", layer(5), False, {"cond_or_uncond": [1, 0, 0, 1, 0]}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_never_a_guess(name: str) -> None:
    """Refused with a sentence, but where all rows read the same, for then no distinction is needed."""
    sides, x, same, options = REFUSED[name]
    places, whos = SIDES[sides]
    batch = Batch(rows_of_call(len(places), len(places), 1), places)
    batch.at(layer(len(places), same=same), GRID, whos)
    with pytest.raises(
        ValueError, match=rf"expected the {len(places)} rows .* calls it with {len(x)} without marking them"
    ):
        batch.at(x, GRID | options, whos)
    assert len(batch.at(x, GRID | options, [C] * len(places))) == len(x)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 2, 1, 3], [3, 1, 2, 0]])
def test_what_reads_the_same_is_read_together(order: list[int]) -> None:
    """One call for each who, and the output in the rows' own order."""
    rows = [Row(i % 2, 0) for i in order]
    batch, x, calls = Batch(rows, [0, 1]), layer(4), []

    def read(group: Group) -> Tensor:
        calls.append(*group.whos)
        return x[group.part] * (2.0 if group.whos == (C,) else 3.0)

    out = batch.by_who(x, GRID, [C, U], read)
    assert sorted(calls) == [U, C]
    assert torch.equal(out, torch.stack([x[i] * (2.0, 3.0)[row.chunk] for i, row in enumerate(rows)]))


@pytest.mark.parametrize(("top", "left"), [(0, 0), (3, 5), (6, 7)])
def test_a_tile_is_found_where_it_was_cut_out(top: int, left: int) -> None:
    pictures = torch.randn(2, 4, 8, 9, generator=torch.Generator().manual_seed(0))
    tile = pictures[1].roll((-top, -left), (-2, -1))[:, :4, :3]  # the last goes round the edge
    assert torch.equal(cut(pictures[1], 4, 3, top, left), tile)
    assert find(tile, pictures) == Spot(1, 4, 3, top, left)
    assert find(tile + 1e-3, pictures) is None
