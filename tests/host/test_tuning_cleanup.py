"""The end of a tuning, with a failure at every call of it: plain pictures stay as they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from dreamtuner_pack.dreamtuner_core.host.tuning.job import Job
from dreamtuner_pack.dreamtuner_core.host.tuning.pairs import make_pairs
from dreamtuner_pack.dreamtuner_core.host.tuning.train import Training
from dreamtuner_pack.dreamtuner_core.tuning.config import TuningConfig
from graph import sample
from tuning_world import SETTINGS, World, folders

import nodes

pytestmark = pytest.mark.usefixtures("quick_samples")

CALLS = [
    *((ModelPatcher, name) for name in (
        "detach", "eject_model", "model_patches_to", "unpatch_model", "unpatch_hooks", "unpin_all_weights",
        "get_all_callbacks",
    )),
    (comfy.model_patcher, "wipe_lowvram_weight"),
    (comfy.model_patcher, "move_weight_functions"),
    *((comfy.utils, name) for name in ("set_attr", "set_attr_param", "copy_to_param")),
    (torch.nn.Module, "to"),
    (torch.utils.hooks.RemovableHandle, "remove"),
]  # fmt: skip
"""What the end of a tuning calls, as far as a host has it."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A model with a LoRA on it, so that weights too must be put back."""
    with folders(tmp_path):
        world = World(tmp_path)
        world.tune("first", steps=1)
        world.model, world.clip = nodes.LoraLoader().load_lora(world.model, world.clip, "first.safetensors", 1.0, 1.0)
        yield world


def picture(world: World) -> torch.Tensor:
    text = [world.clip.encode_from_tokens_scheduled(world.clip.tokenize(words)) for words in ("a dog", "")]
    return sample(world.model, *text)


class Faults:
    """Fails the nth call of a function, once armed; n of 0 counts alone."""

    def __init__(self, patch: pytest.MonkeyPatch, error: type[BaseException] = RuntimeError) -> None:
        self.armed, self.wanted, self.seen, self.error = False, ("", 0), Counter[str](), error
        for owner, name in CALLS:
            if hasattr(owner, name):
                patch.setattr(owner, name, self._failing(name, getattr(owner, name)))

    def _failing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*args: Any, **kwargs: Any) -> Any:
            if self.armed:
                self.seen[name] += 1
                if (name, self.seen[name]) == self.wanted:
                    raise self.error("[enforce fail at alloc_cpu.cpp:127] cannot allocate memory")
            return call(*args, **kwargs)

        return failing


def begin_and_end(world: World, faults: Faults, wanted: tuple[str, int]) -> None:
    """A tuning that is loaded, and then ends."""
    config = TuningConfig(steps=1, precision="bf16", **SETTINGS)
    job = Job(world.model, world.clip, world.vae, world.subject, "dog", "rex", config)
    with Training(job, make_pairs(job)) as training:
        training.load()
        faults.armed, faults.wanted, faults.seen = True, wanted, Counter()
    faults.armed = False


def test_a_failure_at_any_call_of_the_end_leaves_no_trace(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = picture(world)
    faults = Faults(monkeypatch)
    begin_and_end(world, faults, ("", 0))
    counted = Counter(faults.seen)
    assert counted["detach"] == 2
    assert counted["wipe_lowvram_weight"] > 100
    for name, times in counted.items():
        for nth in sorted({1, 2, times // 2 or 1, times}):
            begin_and_end(world, faults, (name, nth))
            assert torch.equal(picture(world), before), f"call {nth} of {name}"


def test_ctrl_c_during_the_end_leaves_no_trace(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = picture(world)
    faults = Faults(monkeypatch, KeyboardInterrupt)
    for name, nth in (("to", 1), ("to", 2), ("detach", 1), ("wipe_lowvram_weight", 1)):
        with pytest.raises(KeyboardInterrupt):
            begin_and_end(world, faults, (name, nth))
        faults.armed = False
        assert torch.equal(picture(world), before), f"call {nth} of {name}"


def test_a_network_that_cannot_be_detached_does_not_keep_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before, detach = picture(world), ModelPatcher.detach

    def failing(self: ModelPatcher, unpatch_all: bool = True) -> Any:
        if unpatch_all:
            raise RuntimeError("no memory")
        return detach(self, unpatch_all)

    with monkeypatch.context() as patch:
        patch.setattr(ModelPatcher, "detach", failing)
        world.tune(steps=1)
    assert "the tuned network could not be unloaded" in caplog.text
    assert torch.equal(picture(world), before)
    world.tune("again", steps=1)
    assert torch.equal(picture(world), before)
