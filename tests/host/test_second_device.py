"""The U-Net on another device than the CPU, where the host keeps pictures, masks and texts; and its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management as management
import pytest
import torch
from comfy import cli_args
from comfy.model_patcher import ModelPatcher
from dreamtuner_pack.dreamtuner_core.host import memory
from families import text, tiny_model
from graph import LATENT, attend, guide, hard_mask, kept_bytes, sample, soft_mask, subject
from host_patches import PATCHES
from second_device import CPU, META, OnSecondDevice, SecondDevice
from torch import Tensor, nn

MIB = 1 << 20


class Card:
    """What the host believes of the second device. total: its bytes; models: those that may lie on it."""

    def __init__(self) -> None:
        self.total: float = 16 << 30
        self.models: list[ModelPatcher] = []

    def free(self) -> float:
        return self.total - sum({id(x.model): x.loaded_size() for x in self.models}.values())

    def lists(self, patcher: ModelPatcher) -> bool:
        return any(loaded.model is patcher for loaded in management.current_loaded_models)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    card, tensor = Card(), torch.tensor

    def free(device: Any = None, torch_free_too: bool = False) -> Any:
        found = 1 << 40 if device == CPU else card.free()
        return (found, 0) if torch_free_too else found

    def made_there(*values: Any, device: Any = None, **more: Any) -> Tensor:
        made = tensor(*values, **more)
        return made if device is None else made.to(device)

    monkeypatch.setattr(torch, "tensor", made_there)  # the only maker that asks no dispatcher
    monkeypatch.setattr(management, "get_torch_device", lambda: META)
    monkeypatch.setattr(management, "unet_offload_device", lambda: CPU)
    monkeypatch.setattr(management, "get_free_memory", free)
    monkeypatch.setattr(management, "soft_empty_cache", lambda force=False: None)
    monkeypatch.setattr(management, "extra_reserved_memory", lambda: 0)
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 0.2 * MIB)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    before = management.current_loaded_models[:]
    management.current_loaded_models.clear()
    yield card
    management.current_loaded_models[:] = before


def left_half() -> Tensor:
    region = torch.zeros(1, 8 * LATENT[0], 8 * LATENT[1])
    region[:, :, : 4 * LATENT[1]] = 1.0
    return region


GRAPHS: dict[str, Callable[[ModelPatcher, str], ModelPatcher]] = {
    "masked": lambda model, family: attend(model, subject(family, soft_mask())),
    "no caption": lambda model, family: attend(model, subject(family, hard_mask(), captioned=False)),
    "guided": lambda model, family: guide(attend(model, subject(family, soft_mask()))),
    "region": lambda model, family: attend(model, subject(family, soft_mask()), region=left_half()),
}


def test_the_second_device_refuses_to_be_mixed(card: Card) -> None:
    with SecondDevice():
        there = torch.ones(2, device=META)
        assert isinstance(there, OnSecondDevice)
        assert (there + 1).cpu().tolist() == [2.0, 2.0]
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(2)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("name", GRAPHS)
def test_draws_as_on_the_cpu(card: Card, family: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_args.args, "use_quad_cross_attention", True)  # one kernel on both: it rounds alike
    pictures = []
    for device in (META, CPU):
        model = tiny_model(family)
        model.load_device = device
        with SecondDevice():
            pictures.append(sample(GRAPHS[name](model, family), text(family, 1), text(family, 2)).cpu())
    assert torch.equal(*pictures)


def test_a_region_on_folded_tokens(card: Card) -> None:
    model = attend(PATCHES["HyperTile"](tiny_model("sd1")), subject(), region=left_half())
    with SecondDevice():
        pictures = sample(model, text("sd1", 1), text("sd1", 2))
    assert torch.isfinite(pictures).all()


# --- memory ----------------------------------------------------------------------------------------------------------


def another_model() -> ModelPatcher:
    """4 MiB that are on the card."""
    return ModelPatcher(nn.Sequential(nn.Linear(1024, 1024, bias=False)).requires_grad_(False), META, CPU)


def test_features_are_the_hosts_to_ask_back(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the host had to unload a text encoder, and what it knew of no use, for the U-Net."""
    model, encoder, shown = tiny_model("sd1"), another_model(), subject()
    card.total = 1.1 * model.model_size() + 3 * MIB
    monkeypatch.setattr(model.model, "memory_required", lambda *_, **__: 0.1 * MIB)
    drawing = attend(model, shown)
    card.models = [drawing, encoder, memory.kept_features(model)]
    with SecondDevice():
        management.load_models_gpu([encoder])
        sample(drawing, text("sd1", 1), text("sd1", 2))
        assert kept_bytes(model, shown, META) > 0
        assert card.lists(memory.kept_features(model))
        management.free_memory(card.total, META)
    assert kept_bytes(model, shown, META) == 0
    assert kept_bytes(model, shown, CPU) > 0


def test_telling_the_host_pushes_nothing_out(card: Card) -> None:
    model, shown = tiny_model("sd1"), subject()
    drawing = attend(model, shown)
    card.models = [drawing, memory.kept_features(model)]
    with SecondDevice():
        sample(drawing, text("sd1", 1), text("sd1", 2))
        kept = kept_bytes(model, shown, META)
        card.total = model.model_size() + kept + 0.3 * MIB  # just what both and the host's own reserve take
        memory.kept_features(model).announce()
        assert (drawing.loaded_size(), kept_bytes(model, shown, META)) == (model.model_size(), kept)


def test_what_is_kept_leaves_the_run_its_memory(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shown, left = tiny_model("sd1"), subject(), []
    monkeypatch.setattr(model.model, "memory_required", lambda *_, **__: 1.0 * MIB)
    drawing = attend(model, shown)
    card.models = [drawing, memory.kept_features(model)]
    card.total = 1.1 * model.model_size() + 2 * MIB
    keep = memory.KeptFeatures.keep

    def noted(self: Any, *told: Any) -> bool:
        kept = keep(self, *told)
        left.append(card.free())
        return kept

    monkeypatch.setattr(memory.KeptFeatures, "keep", noted)
    with SecondDevice():
        sample(drawing, text("sd1", 1), text("sd1", 2), steps=20)
    assert min(left) >= 1.5 * MIB, "what the host takes for cond and uncond in one batch"
    assert kept_bytes(model, shown, META) > 0
    assert kept_bytes(model, shown, CPU) > 0
