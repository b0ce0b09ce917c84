"""What the bank of reference features keeps, drops and moves."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamtuner_core.bank import KEPT_RUNS, Features, LayerFeatures, ReferenceBank, size

CPU, META = torch.device("cpu"), torch.device("meta")  # meta stands for a second device
ENTRY = 4 * (2 * 6 * 8 + 6)  # bytes of one entry below
LATENT = torch.zeros(1, 4, 8, 8)


def features(value: float = 1.0) -> Features:
    k = torch.full((1, 6, 8), value)
    return {"layer": LayerFeatures(k, -k, torch.full((6,), value))}


def filled(*keys: str) -> ReferenceBank:
    bank = ReferenceBank()
    bank.begin_run()
    for i, key in enumerate(keys):
        bank.put(LATENT, key, features(float(i)), CPU)
    return bank


def kept(bank: ReferenceBank, keys: str, latent: Tensor = LATENT) -> str:
    """Those of the keys that are in the bank."""
    return "".join(key for key in keys if bank.get(latent, key, CPU) is not None)


def run(bank: ReferenceBank, keys: str) -> None:
    """A run that uses those keys."""
    bank.begin_run()
    kept(bank, keys)


def test_what_is_put_is_got() -> None:
    bank, put = ReferenceBank(), features(0.5)
    assert bank.get(LATENT, "a", CPU) is None
    bank.put(LATENT, "a", put, CPU)
    found = bank.get(LATENT, "a", CPU)
    assert found is not None
    assert all(torch.equal(x, y) for x, y in zip(found["layer"], put["layer"]))
    assert bank.nbytes() == size(put) == ENTRY
    assert len(bank) == 1


def test_a_latent_is_known_by_what_it_is_and_not_by_its_values() -> None:
    bank = filled("a")
    assert bank.get(LATENT.clone(), "a", CPU) is None


def test_features_go_with_their_latent() -> None:
    bank, latent = filled("a"), LATENT.clone()
    bank.put(latent, "a", features(), CPU)
    assert bank.nbytes() == 2 * ENTRY
    del latent
    assert bank.nbytes() == ENTRY


def test_what_a_few_runs_did_not_use_is_dropped() -> None:
    bank = filled("a", "b")
    for _ in range(KEPT_RUNS):
        run(bank, "a")
    assert kept(bank, "ab") == "ab"
    for _ in range(KEPT_RUNS + 1):
        run(bank, "a")
    assert kept(bank, "ab") == "a"
    assert bank.nbytes() == ENTRY


def test_a_run_never_drops_what_it_or_the_last_one_used() -> None:
    """Else a run with more levels than fit would find none of them the next time."""
    bank = filled("a", "b")
    assert bank.drop(CPU, 2 * ENTRY) == 0
    bank.begin_run()
    assert bank.drop(CPU, 2 * ENTRY) == 0
    assert kept(bank, "ab") == "ab"


def test_what_two_runs_did_not_use_makes_room_oldest_first() -> None:
    bank = filled("a", "b", "c")
    run(bank, "a")
    bank.begin_run()
    bank.begin_run()
    assert bank.drop(CPU, ENTRY + 1) == 2 * ENTRY
    assert kept(bank, "abc") == "a"  # used later than b and c


def test_an_entry_put_again_replaces_itself() -> None:
    bank = filled("a")
    bank.put(LATENT, "a", features(7.0), CPU)
    found = bank.get(LATENT, "a", CPU)
    assert found is not None
    assert found["layer"].mask[0] == 7.0
    assert bank.nbytes() == ENTRY


def test_entries_move_between_devices_until_enough_is_free() -> None:
    bank = filled("a", "b", "c")
    assert bank.move(CPU, CPU) == 0
    assert bank.move(CPU, META, amount=1) == ENTRY
    assert (bank.nbytes(CPU), bank.nbytes(META)) == (2 * ENTRY, ENTRY)
    assert bank.move(CPU, META) == 2 * ENTRY
    assert (bank.nbytes(CPU), bank.nbytes(META), bank.nbytes()) == (0, 3 * ENTRY, 3 * ENTRY)


def test_only_unused_entries_move_for_others() -> None:
    bank = filled("a", "b")
    run(bank, "a")
    bank.begin_run()
    assert bank.move(CPU, META, unused=True) == ENTRY
    assert bank.nbytes(CPU) == ENTRY


def test_features_come_on_the_device_that_is_asked_for() -> None:
    bank = filled("a")
    found = bank.get(LATENT, "a", META)
    assert found is not None
    assert {x.device for x in found["layer"]} == {META}
    assert bank.nbytes(CPU) == ENTRY  # the kept ones stay where they are
    bank.put(LATENT, "b", features(), META)
    assert bank.nbytes(META) == ENTRY


def test_clear_leaves_nothing() -> None:
    bank = filled("a", "b")
    bank.clear()
    assert (len(bank), bank.nbytes()) == (0, 0)
