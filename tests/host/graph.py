"""A graph in a few words: tiny subjects and texts in, the pack's and the host's own nodes, latents out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from dreamtuner_pack.dreamtuner_core.bank import Features, size
from dreamtuner_pack.dreamtuner_core.host.memory import kept_features
from dreamtuner_pack.dreamtuner_core.host.sampling import features
from dreamtuner_pack.dreamtuner_core.subject import Subject
from dreamtuner_pack.nodes.reference_guidance import ReferenceGuidance
from dreamtuner_pack.nodes.self_subject_attention import ApplySelfSubjectAttention
from families import text, tiny_model
from torch import Tensor
from torch.nn import functional as F

import nodes

LATENT = (12, 8)  # height, width
REFERENCE = (8, 10)
SEED = 3

shared_model = cache(tiny_model)
"""The same tiny model for all tests: what one of them left in it, the next would see."""


def hard_mask(height: int = REFERENCE[0] * 8, width: int = REFERENCE[1] * 8) -> Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : -height // 8, width // 5 : -width // 4] = 1.0
    return mask


def soft_mask(height: int = REFERENCE[0] * 8, width: int = REFERENCE[1] * 8, seed: int = 4) -> Tensor:
    noise = torch.rand(1, 1, height // 16, width // 16, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (height, width), mode="bilinear")[0] * hard_mask(height, width)


def subject(
    family: str = "sd1",
    mask: Tensor | None = None,
    seed: int = 9,
    captioned: bool = True,
    noise_seed: int = 0,
    size: tuple[int, int] = REFERENCE,
) -> Subject:
    """A subject as Encode Subject Image would give it, of random latents."""
    draw = torch.Generator().manual_seed(seed)
    height, width = size
    return Subject(
        picture=torch.rand(1, 8 * height, 8 * width, 3, generator=draw),
        mask=mask,
        latent=5.0 * torch.randn(1, 4, height, width, generator=draw),
        caption=text(family, seed + 1, tokens=33) if captioned else None,
        noise_seed=noise_seed,
    )


def kept(model: ModelPatcher, one: Subject, device: torch.device | None = None) -> list[Features]:
    """The features that are kept of the subject for this model, in all or on one device."""
    entries = kept_features(model).model._by_latent.get(one.latent, {}).values()
    return [entry.features for entry in entries if device in (None, entry.device)]


def kept_bytes(model: ModelPatcher, one: Subject, device: torch.device | None = None) -> int:
    return sum(map(size, kept(model, one, device)))


def attend(
    model: ModelPatcher,
    subject: Subject,
    weight: float = 3.0,
    start: float = 0.0,
    end: float = 1.0,
    region: Tensor | None = None,
    negative_weight: float = 1.0,
) -> ModelPatcher:
    """Apply Self-Subject Attention."""
    return ApplySelfSubjectAttention.execute(model, subject, weight, start, end, region, negative_weight).args[0]


def guide(
    model: ModelPatcher, scale: float = 2.0, probability: float = 0.5, dt: float = 20.0, dt_uncond: float = 40.0
) -> ModelPatcher:
    """Reference Guidance."""
    return ReferenceGuidance.execute(model, scale, probability, dt, dt_uncond).args[0]


def empty_latent(batch: int = 1, height: int = LATENT[0], width: int = LATENT[1]) -> dict[str, Any]:
    return {"samples": torch.zeros(batch, 4, height, width)}


def sample(
    model: ModelPatcher,
    positive: list,
    negative: list,
    latent: dict[str, Any] | None = None,
    seed: int = SEED,
    steps: int = 3,
    cfg: float = 5.0,
    sampler: str = "euler",
    scheduler: str = "normal",
    **more: Any,
) -> Tensor:
    """KSampler (more: those of KSamplerAdvanced), as the host's node runs it."""
    latent = latent or empty_latent()
    return nodes.common_ksampler(model, seed, steps, cfg, sampler, scheduler, positive, negative, latent, **more)[0][
        "samples"
    ]


def draw(model: ModelPatcher, family: str = "sd1", **changes: Any) -> Tensor:
    """A picture of the tests' two texts."""
    torch.manual_seed(0)  # HyperTile and token merging draw from the global generator
    settings: dict[str, Any] = {"positive": text(family, 1), "negative": text(family, 2)}
    return sample(model, **settings | changes)


@contextmanager
def counted_passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The noise levels of all reference passes made inside."""
    levels: list[float] = []
    compute = features.reference_features

    def counting(**asked: Any) -> Any:
        levels.append(asked["sigma"])
        return compute(**asked)

    with monkeypatch.context() as patched:
        patched.setattr(features, "reference_features", counting)
        yield levels


def lora(model: ModelPatcher, strength: float, seed: int = 0, what: str = "attn1_to_k") -> ModelPatcher:
    """LoraLoaderModelOnly with a LoRA file of kohya's names."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for block in ("input_blocks_1_1", "output_blocks_1_1"):
        name = f"lora_unet_{block}_transformer_blocks_0_{what}"
        weights |= {f"{name}.lora_up.weight": torch.randn(32, 2, generator=generator)}
        weights |= {f"{name}.lora_down.weight": torch.randn(2, 32, generator=generator)}
    return comfy.sd.load_lora_for_models(model, None, weights, strength, 0)[0]


def options_of(model: ModelPatcher) -> Any:
    """All that a patcher carries into a run, comparable."""
    return copy.copy(model.model_options), model.wrappers, model.callbacks, model.object_patches, model.patches_uuid


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


STEPS = 3


def attending(model: ModelPatcher, family: str = "sd1", seed: int = 9) -> ModelPatcher:
    return attend(model, subject(family, soft_mask(), seed))


def guided(model: ModelPatcher, family: str = "sd1") -> ModelPatcher:
    return guide(attending(model, family))


OURS: dict[str, Callable[..., ModelPatcher]] = {"S-S-A": attending, "S-S-A and guidance": guided}
