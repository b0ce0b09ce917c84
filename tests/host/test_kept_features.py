"""The features that are kept between runs: whose they are, how much memory they take, and when they are freed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import comfy.model_management as management
import pytest
import torch
from coarse import bring, coarse_subject
from comfy.model_patcher import ModelPatcher
from dreamtuner_pack.dreamtuner_core.bank import KEPT_RUNS, LayerFeatures, size
from dreamtuner_pack.dreamtuner_core.host import memory
from dreamtuner_pack.dreamtuner_core.host.sampling.features import features_key
from dreamtuner_pack.dreamtuner_core.host.unet import self_attentions
from dreamtuner_pack.dreamtuner_core.subject import Subject
from families import text, tiny_model
from graph import (
    OURS,
    STEPS,
    attend,
    counted_passes,
    draw,
    hard_mask,
    kept,
    kept_bytes,
    lora,
    shared_model,
    soft_mask,
    subject,
)

pytestmark = pytest.mark.usefixtures("encoder_files")
CPU = torch.device("cpu")

CHANGES: dict[str, Callable[[], dict[str, Any]]] = {
    "mask": lambda: {"mask": None},
    "caption": lambda: {"caption": text("sd1", 99)},
    "noise seed": lambda: {"noise_seed": 5},
    "latent": lambda: {"latent": subject(seed=77).latent},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_copy_reads_nothing_of_the_original(change: Callable[[], dict[str, Any]]) -> None:
    model, one, changes = shared_model("sd1"), subject(mask=soft_mask()), change()
    first = draw(attend(model, one))
    copied = draw(attend(model, replace(one, **changes)))
    assert torch.equal(copied, draw(attend(tiny_model("sd1"), replace(one, **changes))))
    assert not torch.equal(copied, first)
    assert torch.equal(draw(attend(model, one)), first)


def test_an_unchanged_copy_reads_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model, one = shared_model("sd1"), subject(mask=soft_mask())
    with counted_passes(monkeypatch) as computed:
        first = draw(attend(model, one))
        assert torch.equal(draw(attend(model, replace(one), 3.0)), first)
    assert len(computed) == STEPS


# --- one bound for all -----------------------------------------------------------------------------------------------


@pytest.fixture
def memory_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Give the features of all models together room for so many bytes."""
    keep = memory.KeptFeatures.keep
    before = management.current_loaded_models[:]
    management.current_loaded_models.clear()

    def give(amount: float) -> None:
        def free(self: memory.KeptFeatures, device: torch.device) -> float:
            return amount / memory.SHARE - sum(each.model.nbytes() for each in self._all())

        monkeypatch.setattr(memory.KeptFeatures, "_free_memory", free)
        monkeypatch.setattr(memory.KeptFeatures, "keep", lambda self, *told: keep(self, *told[:-1], reserve=0))

    yield give
    management.current_loaded_models[:] = before


@pytest.mark.parametrize("entries", [0, 1, 2])
def test_too_little_memory_only_costs_time(entries: int, memory_for: Callable[[float], None]) -> None:
    one, model = subject(mask=soft_mask()), tiny_model("sd1")
    expected = draw(attend(model, one))
    level = kept_bytes(model, one) // STEPS
    memory.kept_features(model).model.clear()
    small, again = subject(mask=soft_mask()), tiny_model("sd1")
    memory_for(entries * level + 8)
    for _ in range(2):
        assert torch.equal(draw(attend(again, small)), expected)
        assert len(kept(again, small)) == entries


def test_subjects_and_models_share_one_bound(memory_for: Callable[[float], None]) -> None:
    """The newest is kept; what was used two runs ago makes room, be it of another model."""
    models = [tiny_model("sd1", seed=seed) for seed in (0, 1)]
    subjects = [subject(mask=soft_mask(), seed=seed) for seed in (1, 2, 3)]
    draw(attend(models[0], subjects[0]))
    one = kept_bytes(models[0], subjects[0])
    memory_for(2 * one)
    draw(attend(models[0], subjects[1]))
    assert [kept_bytes(models[0], s) for s in subjects] == [one, one, 0]
    draw(attend(models[1], subjects[2]))
    assert [kept_bytes(models[0], s) for s in subjects] == [0, one, 0]
    assert kept_bytes(models[1], subjects[2]) == one


def test_what_a_few_runs_did_not_use_goes_be_it_of_another_model() -> None:
    first, other, one = tiny_model("sd1"), tiny_model("sd1", seed=1), subject(mask=soft_mask())
    draw(attend(first, one))
    for _ in range(KEPT_RUNS):
        draw(attend(other, one))
    assert kept_bytes(first, one) == kept_bytes(other, one) > 0
    draw(attend(other, one))
    assert kept_bytes(first, one) == 0
    assert kept_bytes(other, one) > 0


# --- freed at once ---------------------------------------------------------------------------------------------------


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Only what nothing refers to is freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_features_are_freed_with_their_subject(without_collector: None) -> None:
    one, model = subject(mask=soft_mask()), tiny_model("sd1")
    draw(attend(model, one))
    assert memory.kept_features(model).model.nbytes() > 0
    del one
    assert memory.kept_features(model).model.nbytes() == 0


def encoded(model: ModelPatcher) -> ModelPatcher:
    return bring(attend(model, one := coarse_subject()), one)


@pytest.mark.parametrize("patch", [*OURS.values(), encoded], ids=[*OURS, "S-E-A"])
def test_a_model_is_freed_with_its_last_patcher(patch: Callable, without_collector: None) -> None:
    patched = patch(tiny_model("sd1"))
    draw(patched)
    model = weakref.ref(patched.model)
    management.current_loaded_models.clear()
    del patched
    assert model() is None


def test_what_a_run_reserves_is_left_free(monkeypatch: pytest.MonkeyPatch) -> None:
    of_model, latent = memory.KeptFeatures(CPU, CPU), torch.zeros(1)
    features = {"layer": LayerFeatures(*(torch.zeros(1, 10, 1) for _ in range(3)))}
    free = size(features) / memory.SHARE  # enough for these, to the byte
    monkeypatch.setattr(management, "get_free_memory", lambda *_, **__: free)
    assert not of_model.keep(latent, "key", features, reserve=1.0)
    assert of_model.keep(latent, "key", features, reserve=0.0)


def test_eighty_runs_keep_no_more_than_twenty() -> None:
    """Strengths, subjects and checkpoints change; some return, most do not."""
    lasting: list[Subject] = [subject(mask=hard_mask(), seed=seed) for seed in (1, 2)]
    models = [tiny_model("sd1", seed=seed) for seed in range(3)]
    used = []
    for run in range(80):
        if run % 10 == 9:  # the first checkpoint stays
            models[1 + run // 10 % 2] = tiny_model("sd1", seed=run)
        one = lasting[run % 2] if run % 5 else subject(mask=hard_mask(), seed=100 + run)
        model = models[run % 3]
        draw(attend(lora(model, 0.01 * run) if run % 2 else model, one), steps=2, cfg=1.0)
        del one, model
        if run % 20 == 19:
            used.append(_bytes_of_tensors())
    assert max(used[1:]) < 1.05 * used[0], [round(x / used[0], 2) for x in used]


def _bytes_of_tensors() -> int:
    """Of all tensors that are alive, each storage once."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter) and x.device == CPU]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def test_features_are_of_one_noise_level_and_one_network_time() -> None:
    """Guidance shifts the level alone, so that one level may be read at several times."""
    model, one = shared_model("sd1"), subject()
    layers = list(self_attentions(model))
    asked = [(1.0, 10.0), (1.0, 11.0), (2.0, 10.0)]
    keys = [features_key(model, one, layers, sigma, time) for sigma, time in asked]
    assert len(set(keys)) == 3
    assert features_key(model, one, layers, 1.0, 10.0) == keys[0]


def test_features_are_of_one_size_of_picture() -> None:
    """SDXL reads it."""
    model, one = shared_model("sdxl"), subject("sdxl")
    layers = list(self_attentions(model))
    other = replace(one, picture=torch.zeros(1, 8, 16, 3))
    assert features_key(model, one, layers, 1.0, 1.0) != features_key(model, other, layers, 1.0, 1.0)


def test_under_a_hook_features_are_of_each_loras_strength() -> None:
    """There the host's own mark of the weights says nothing."""
    model, patch = shared_model("sd1"), ("diff", (torch.ones(32, 32),))
    layers = list(self_attentions(model))

    def key(strength: float) -> object:
        patched = model.clone()
        [name] = [name for name in model.model_state_dict() if name.endswith("input_blocks.1.1.proj_in.weight")]
        patched.add_patches({name: patch}, strength)
        patched.hook_patches = {"a hook": {}}
        return features_key(patched, one, layers, 1.0, 1.0)

    one = subject()
    assert key(0.5) == key(0.5)
    assert key(0.5) != key(0.9)


def test_features_are_of_the_replaced_parts_that_a_model_is_run_with() -> None:
    """As torch.compile nodes replace the U-Net, for one."""
    model, one = shared_model("sd1"), subject()
    layers, other = list(self_attentions(model)), model.clone()
    other.add_object_patch("diffusion_model.out", torch.nn.Identity())
    keys = [features_key(patcher, one, layers, 1.0, 1.0) for patcher in (model, other, other.clone())]
    assert keys[0] != keys[1] == keys[2]
