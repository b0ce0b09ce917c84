"""What the pack leaves behind: nothing but kept features, and those change no bit of any picture."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy.model_patcher import ModelPatcher
from dreamtuner_pack.dreamtuner_core.host.sampling import features
from dreamtuner_pack.dreamtuner_core.host.sampling import run as sampling
from families import SHAPES, text
from graph import (
    OURS,
    STEPS,
    attend,
    counted_passes,
    draw,
    empty_latent,
    guide,
    guided,
    hard_mask,
    kept_bytes,
    lora,
    options_of,
    shared_model,
    soft_mask,
    subject,
)
from torch import Tensor

every_patch = pytest.mark.parametrize("patch", OURS.values(), ids=OURS.keys())


# --- removal ---------------------------------------------------------------------------------------------------------


@every_patch
@pytest.mark.parametrize("family", SHAPES)
def test_after_use_the_model_draws_as_before(patch: Callable, family: str) -> None:
    model = shared_model(family)
    before = draw(model, family)
    assert not torch.equal(draw(patch(model, family), family), before)
    assert torch.equal(draw(model, family), before)


@every_patch
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_sde"])
def test_no_random_number_is_drawn_from_the_hosts_generator(patch: Callable, sampler: str) -> None:
    """So a sampler that draws noise in each step draws the same as without the pack."""
    states = []
    for model in (shared_model("sd1"), patch(shared_model("sd1"))):
        draw(model, sampler=sampler)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


NOTHING: dict[str, Callable[[ModelPatcher], ModelPatcher]] = {
    "weight 0": lambda m: attend(m, subject("sd1"), weight=0.0),
    "weight 0, guided": lambda m: guide(attend(m, subject("sd1"), weight=0.0)),
    "weight 0 in a region": lambda m: attend(m, subject("sd1"), weight=0.0, region=hard_mask()),
    "two of weight 0": lambda m: attend(attend(m, subject("sd1"), 0.0), subject("sd1", seed=21), 0.0),
    "guidance without a subject": guide,
    "a range before the first step": lambda m: attend(m, subject("sd1"), start=0.0, end=0.0),
    "a range between two steps": lambda m: attend(m, subject("sd1"), start=0.1, end=0.2),
    "a range between two steps, guided": lambda m: guide(attend(m, subject("sd1"), start=0.1, end=0.2)),
}


@pytest.mark.parametrize("patch", NOTHING.values(), ids=NOTHING.keys())
def test_what_reads_nothing_changes_nothing(patch: Callable) -> None:
    model = shared_model("sd1")
    assert torch.equal(draw(patch(model)), draw(model))


def test_a_subject_without_any_token_changes_no_more_than_rounding() -> None:
    model, nobody = shared_model("sd1"), subject("sd1", torch.zeros(1, 64, 80))
    plain = draw(model)
    assert (draw(attend(model, nobody)) - plain).abs().max() < 1e-5 * plain.std()


def test_a_subject_of_weight_0_beside_another_is_not_there() -> None:
    model, first = shared_model("sd1"), subject("sd1", hard_mask())
    alone = draw(attend(model, first))
    for one, other in ((3.0, 0.0), (0.0, 3.0)):
        second = subject("sd1", seed=21)
        patched = attend(attend(model, first if one else second, one), second if one else first, other)
        assert torch.equal(draw(patched), alone)


# --- the kept features -----------------------------------------------------------------------------------------------


@every_patch
def test_kept_features_give_the_very_bits_of_computed_ones(patch: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    patched = patch(shared_model("sd1"))
    with counted_passes(monkeypatch) as computed:
        first = draw(patched)
    assert len(computed) == len(set(computed)) > 0  # once per noise level
    with counted_passes(monkeypatch) as again:
        assert torch.equal(draw(patched), first)
    assert not again
    assert torch.equal(draw(patch(shared_model("sd1"))), first)  # another subject of the same values, computed afresh


@pytest.mark.parametrize("change", [{"mask": None}, {"noise_seed": 5}, {"caption": text("sd1", 40)}])
def test_a_changed_copy_of_a_subject_is_read_anew(change: dict[str, Any]) -> None:
    """Though it shares the features that are kept."""
    model, one = shared_model("sd1"), subject("sd1", soft_mask())
    before, copy = draw(attend(model, one)), replace(one, **change)
    changed = draw(attend(model, copy))
    assert torch.equal(changed, draw(attend(model, replace(subject("sd1", soft_mask()), **change))))
    assert not torch.equal(changed, before)
    assert torch.equal(draw(attend(model, one)), before)


UNCHANGED: dict[str, tuple[Callable[[ModelPatcher, Any], ModelPatcher], dict[str, Any]]] = {
    "sampler seed": (attend, {"seed": 77}),
    "cfg": (attend, {"cfg": 2.0}),
    "cfg 1": (attend, {"cfg": 1.0}),
    "text": (attend, {"positive": text("sd1", 40)}),
    "batch": (attend, {"latent": empty_latent(3)}),
    "size": (attend, {"latent": empty_latent(height=6, width=9)}),
    "sampler": (attend, {"sampler": "dpmpp_2m"}),
    "reference weight": (lambda m, s: attend(m, s, 1.0), {}),
    "region": (lambda m, s: attend(m, s, region=hard_mask()), {}),
    "a second subject": (lambda m, s: attend(attend(m, s), s, 1.0), {}),
    "guidance without shifts": (lambda m, s: guide(attend(m, s), dt=0.0, dt_uncond=0.0), {}),
    "a later start": (lambda m, s: attend(m, s, start=0.2), {}),
    "a clone": (lambda m, s: attend(m.clone(), s), {}),
}


@pytest.mark.parametrize(("patch", "changes"), UNCHANGED.values(), ids=UNCHANGED.keys())
def test_recomputes_nothing_for_a_change_of(patch: Callable, changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    one = subject("sd1", soft_mask())
    before = draw(attend(shared_model("sd1"), one))
    with counted_passes(monkeypatch) as computed:
        after = draw(patch(shared_model("sd1"), one), **changes)
    assert not computed
    if "start" not in changes and after.shape == before.shape and patch is attend:
        assert not torch.equal(after, before)
    fresh = draw(patch(shared_model("sd1"), subject("sd1", soft_mask())), **changes)
    assert torch.equal(after, fresh)


def v_prediction(model: ModelPatcher, subject: Any) -> ModelPatcher:
    """An object patch, as ModelSamplingDiscrete makes it."""
    import comfy.model_sampling

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
        pass

    patched = model.clone()
    patched.add_object_patch("model_sampling", Sampling(model.model.model_config, zsnr=True))
    return attend(patched, subject)


CHANGED: dict[str, tuple[Callable[[ModelPatcher, Any], ModelPatcher], dict[str, Any]]] = {
    "a LoRA": (lambda m, s: attend(lora(m, 1.0), s), {}),
    "a LoRA afterwards": (lambda m, s: lora(attend(m, s), 1.0), {}),
    "another LoRA": (lambda m, s: attend(lora(m, 1.0, seed=1), s), {}),
    "a LoRA on what comes before": (lambda m, s: attend(lora(m, 1.0, what="attn2_to_q"), s), {}),
    "steps": (attend, {"steps": 4}),
    "scheduler": (attend, {"scheduler": "karras"}),
    "dt": (lambda m, s: guide(attend(m, s), dt=50.0, dt_uncond=0.0, probability=1.0), {}),
    "dt_uncond": (lambda m, s: guide(attend(m, s), dt=0.0, dt_uncond=50.0, probability=0.0), {}),
    "model sampling": (v_prediction, {}),
    "model": (lambda m, s: attend(shared_model("sd1", seed=5), s), {}),
    "type": (lambda m, s: attend(shared_model("sd1", torch.bfloat16), s), {}),
}


@pytest.mark.parametrize(("patch", "changes"), CHANGED.values(), ids=CHANGED.keys())
def test_recomputes_for_a_change_of(patch: Callable, changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    one, model = subject("sd1", soft_mask()), shared_model("sd1")
    before = draw(attend(model, one))
    with counted_passes(monkeypatch) as computed:
        after = draw(patch(model, one), **changes)
    assert computed
    assert not torch.equal(after, before)
    fresh = draw(patch(model, subject("sd1", soft_mask())), **changes)
    assert torch.equal(after, fresh)
    with counted_passes(monkeypatch) as computed:
        assert torch.equal(draw(attend(model, one)), before)
    assert not computed  # the features of before are still there


def test_each_strength_of_a_lora_is_another_model() -> None:
    one, model = subject("sd1", soft_mask()), shared_model("sd1")
    kept = [draw(attend(lora(model, strength), one)) for strength in (0.3, 0.9, 0.0)]
    fresh = [draw(attend(lora(model, strength), subject("sd1", soft_mask()))) for strength in (0.3, 0.9, 0.0)]
    assert all(torch.equal(a, b) for a, b in zip(kept, fresh))
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(kept[2], draw(attend(model, one)))


@pytest.mark.parametrize(
    "other",
    [
        lambda: subject("sd1", soft_mask(), noise_seed=1),
        lambda: subject("sd1", soft_mask(), captioned=False),
        lambda: subject("sd1", hard_mask()),
        lambda: subject("sd1", soft_mask(), seed=10),
    ],
    ids=["noise seed", "caption", "mask", "picture"],
)
def test_another_subject_is_another_picture(other: Callable) -> None:
    model = shared_model("sd1")
    assert not torch.equal(draw(attend(model, other())), draw(attend(model, subject("sd1", soft_mask()))))


def test_the_host_gets_the_memory_back_when_it_unloads() -> None:
    one, model = subject("sd1", soft_mask()), shared_model("sd1")
    expected = draw(attend(model, one))
    assert kept_bytes(model, one) > 0
    comfy.model_management.unload_all_models()
    assert kept_bytes(model, one) == 0
    assert torch.equal(draw(attend(model, one)), expected)


def test_only_the_foreground_is_kept() -> None:
    model, everything, part = shared_model("sd1"), subject("sd1"), subject("sd1", hard_mask())
    draw(attend(model, everything))
    draw(attend(model, part))
    share = float((hard_mask() > 0).float().mean())
    assert kept_bytes(model, part) < 1.4 * share * kept_bytes(model, everything)


@every_patch
def test_the_state_of_a_run_dies_with_it(patch: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, run = [], sampling.Run

    def watched(*args: Any) -> sampling.Run:
        made = run(*args)
        runs.append(weakref.ref(made))
        return made

    monkeypatch.setattr(sampling, "Run", watched)
    patched = patch(shared_model("sd1"))
    draw(patched)
    gc.collect()
    assert [r() for r in runs] == [None]


# --- batches ---------------------------------------------------------------------------------------------------------


@every_patch
def test_the_place_in_a_batch_changes_no_more_than_without_the_pack(patch: Callable) -> None:
    """Row i of a batch against the same noise drawn alone (the host's batch_index)."""

    def unlike(model: ModelPatcher) -> float:
        together = draw(model, latent=empty_latent(3))
        alone = torch.cat([draw(model, latent=empty_latent() | {"batch_index": [i]}) for i in range(3)])
        return float((together - alone).abs().max() / together.std())

    model = shared_model("sd1")
    assert unlike(patch(model)) <= 4 * unlike(model) + 1e-6


# --- interrupts and exceptions ---------------------------------------------------------------------------------------


@contextmanager
def failing_network(model: ModelPatcher, call: int, error: Exception) -> Iterator[None]:
    """The U-Net's middle block raises at its call-th call, the reference pass's calls counted too."""
    calls = iter(range(10**6))

    def fail(*_: Any) -> None:
        if next(calls) == call:
            raise error

    handle = model.model.diffusion_model.middle_block[0].register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


ERRORS = {
    "interrupt": InterruptProcessingException(),
    "out of memory": torch.OutOfMemoryError("CUDA out of memory"),
    "another node's error": RuntimeError("a bug elsewhere"),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
@pytest.mark.parametrize("call", range(2 * STEPS))  # each reference pass and each step
def test_a_run_that_dies_anywhere_leaves_nothing(call: int, error: Exception) -> None:
    model = shared_model("sd1")
    plain, expected, patched = draw(model), draw(guided(model)), guided(model)
    before = [copy.deepcopy(options_of(m)) for m in (model, patched)]
    with pytest.raises(type(error)), failing_network(model, call, error):
        draw(patched)
    assert torch.equal(draw(model), plain)
    assert [options_of(m) for m in (model, patched)] == before
    assert torch.equal(draw(patched), expected)


@every_patch
@pytest.mark.parametrize("step", range(STEPS))
def test_an_interrupt_between_steps_leaves_nothing(patch: Callable, step: int) -> None:
    """As the progress bar raises it."""
    model = shared_model("sd1")
    plain, expected, patched = draw(model), draw(patch(model)), patch(model)

    def interrupt(at: int, *_: Any) -> None:
        if at == step:
            raise InterruptProcessingException

    noise = comfy.sample.prepare_noise(empty_latent()["samples"], 3)
    with pytest.raises(InterruptProcessingException):
        comfy.sample.sample(
            patched, noise, STEPS, 5.0, "euler", "normal", text("sd1", 1), text("sd1", 2),
            empty_latent()["samples"], callback=interrupt, disable_pbar=True, seed=3,
        )  # fmt: skip
    assert torch.equal(draw(model), plain)
    assert torch.equal(draw(patched), expected)


@every_patch
def test_an_exception_in_another_patch_leaves_nothing(patch: Callable) -> None:
    model = shared_model("sd1")
    plain, patched = draw(model), patch(model).clone()

    def broken(n: Tensor, context: Tensor, value: Tensor, options: dict) -> Any:
        raise ZeroDivisionError

    patched.set_model_attn2_patch(broken)
    with pytest.raises(ZeroDivisionError):
        draw(patched)
    assert torch.equal(draw(model), plain)


@every_patch
def test_an_out_of_memory_in_the_reference_pass_leaves_nothing(
    patch: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared_model("sd1")
    plain, expected, patched = draw(model), draw(patch(model)), patch(model)

    def full(**_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patching:
        patching.setattr(features, "reference_features", full)
        with pytest.raises(torch.OutOfMemoryError):
            draw(patched)
    assert torch.equal(draw(model), plain)
    assert torch.equal(draw(patched), expected)


@every_patch
def test_a_guider_gets_its_own_options_back(patch: Callable) -> None:
    patched = patch(shared_model("sd1"))
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(text("sd1", 1), text("sd1", 2))
    options = guider.model_options
    noise, latent = torch.randn(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    guider.sample(noise, latent, comfy.samplers.sampler_object("euler"), torch.tensor([5.0, 1.0, 0.0]), seed=1)
    assert guider.model_options is options is patched.model_options
    assert set(options["transformer_options"]) <= {"wrappers"}


# --- clones ----------------------------------------------------------------------------------------------------------


@every_patch
def test_clones_of_clones_draw_the_same(patch: Callable) -> None:
    patched = patch(shared_model("sd1"))
    expected = draw(patched)
    assert torch.equal(draw(patched.clone()), expected)
    assert torch.equal(draw(patched.clone().clone()), expected)
    assert torch.equal(draw(patched), expected)


@every_patch
def test_a_clone_copies_no_weights(patch: Callable) -> None:
    """The host deep-copies model_options at each clone: nothing of the subject or of the model may hang there."""
    one = patch(shared_model("sd1"))
    options = copy.deepcopy(one.model_options)
    seen, todo = [], [options]
    while todo:
        item = todo.pop()
        seen.append(item)
        todo += item.values() if isinstance(item, dict) else item if isinstance(item, (list, tuple)) else []
    assert not any(isinstance(x, (Tensor, torch.nn.Module, ModelPatcher)) for x in seen)
    assert not any(hasattr(x, "__self__") for x in seen)


def test_a_clone_may_go_another_way() -> None:
    """Two nodes on one output: neither sees the other's subject."""
    model = shared_model("sd1")
    first = attend(model, subject("sd1", hard_mask()))
    expected = draw(first)
    second = attend(first, subject("sd1", seed=21))
    both = draw(second)
    assert torch.equal(draw(first), expected)
    assert torch.equal(draw(second), both)
    assert not torch.equal(both, expected)
