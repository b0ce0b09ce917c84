"""What the bank of reference features keeps, drops and moves."""

from __future__ import annotations

import torch

from dreamtuner_core.bank import Features, LayerFeatures, ReferenceBank, size

CPU, META = torch.device("cpu"), torch.device("meta")  # meta stands for a second device
ENTRY = 4 * (2 * 6 * 8 + 6)  # bytes of one entry below


def features(value: float = 1.0) -> Features:
    k = torch.full((1, 6, 8), value)
    return {"layer": LayerFeatures(k, -k, torch.full((6,), value))}


def filled(limit: int, *keys: str) -> ReferenceBank:
    bank = ReferenceBank(limit)
    bank.begin_run()
    for i, key in enumerate(keys):
        bank.put(key, features(float(i)), CPU)
    return bank


def test_what_is_put_is_got() -> None:
    bank, kept = ReferenceBank(), features(0.5)
    assert bank.get("a", CPU) is None
    assert bank.put("a", kept, CPU)
    found = bank.get("a", CPU)
    assert found is not None
    assert all(torch.equal(x, y) for x, y in zip(found["layer"], kept["layer"]))
    assert bank.nbytes() == size(kept) == ENTRY
    assert len(bank) == 1


def test_nothing_is_kept_beyond_the_limit() -> None:
    bank = filled(2 * ENTRY, "a", "b", "c")
    assert len(bank) == 2
    assert bank.nbytes() <= bank.limit
    assert bank.get("c", CPU) is None
    assert not ReferenceBank(ENTRY - 1).put("a", features(), CPU)
    assert ReferenceBank(ENTRY).put("a", features(), CPU)


def test_a_run_never_drops_what_it_or_the_last_one_used() -> None:
    """Else a run with more levels than fit would find none of them the next time."""
    bank = filled(2 * ENTRY, "a", "b")
    bank.begin_run()
    assert not bank.put("c", features(), CPU)
    assert bank.get("a", CPU)
    assert bank.get("b", CPU)


def test_what_two_runs_did_not_use_makes_room_oldest_first() -> None:
    bank = filled(3 * ENTRY, "a", "b", "c")
    bank.begin_run()
    bank.get("a", CPU)
    bank.begin_run()
    bank.begin_run()
    assert bank.put("d", features(), CPU)
    assert len(bank) == 3
    assert bank.get("a", CPU)  # used later than b and c
    assert bank.put("e", features(), CPU)
    assert bank.get("b", CPU) is None
    assert bank.get("c", CPU) is None
    assert bank.nbytes() <= bank.limit


def test_an_entry_put_again_replaces_itself() -> None:
    bank = filled(2 * ENTRY, "a")
    assert bank.put("a", features(7.0), CPU)
    found = bank.get("a", CPU)
    assert found is not None
    assert found["layer"].mask[0] == 7.0
    assert bank.nbytes() == ENTRY


def test_entries_move_between_devices_until_enough_is_free() -> None:
    bank = filled(10 * ENTRY, "a", "b", "c")
    assert bank.move(CPU, CPU) == 0
    assert bank.move(CPU, META, amount=1) == ENTRY
    assert (bank.nbytes(CPU), bank.nbytes(META)) == (2 * ENTRY, ENTRY)
    assert bank.move(CPU, META) == 2 * ENTRY
    assert (bank.nbytes(CPU), bank.nbytes(META), bank.nbytes()) == (0, 3 * ENTRY, 3 * ENTRY)


def test_features_come_on_the_device_that_is_asked_for() -> None:
    bank = filled(10 * ENTRY, "a")
    found = bank.get("a", META)
    assert found is not None
    assert {x.device for x in found["layer"]} == {META}
    assert bank.nbytes(CPU) == ENTRY  # the kept ones stay where they are
    bank.put("b", features(), META)
    assert bank.nbytes(META) == ENTRY


def test_clear_leaves_nothing() -> None:
    bank = filled(10 * ENTRY, "a", "b")
    bank.clear()
    assert (len(bank), bank.nbytes()) == (0, 0)
