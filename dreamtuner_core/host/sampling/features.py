"""The references' features during one run: from the cache, or computed now by the reference pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...bank import Features
from ...subject import Subject
from ..encoder.patch import EncoderAtWork
from ..memory import kept_features
from ..unet import Layer
from .reference import alone, reference_features, text_conditions


class References:
    """The references of one run. shape: of its noise, [B, C, ..., h, w]."""

    def __init__(
        self, patcher: ModelPatcher, subjects: Sequence[Subject], layers: list[Layer], shape: Sequence[int]
    ) -> None:
        self.patcher, self.subjects, self.layers = patcher, list(subjects), layers
        both_sides = [2 * shape[0], *shape[1:]]
        # memory that the host needs to take both sides in one batch; cached features must leave it free
        self.reserve = max(
            1.5 * patcher.model.memory_required(both_sides), comfy.model_management.minimum_inference_memory()
        )
        self.kept = kept_features(patcher)
        self.kept.begin_run()
        self.conditions: dict[int, dict[str, Tensor]] = {}
        self.newest: dict[tuple[int, FeaturesKey], Features] = {}

    def features(self, i: int, sigma: float, network: Tensor, encoders: Sequence[EncoderAtWork]) -> Features:
        """K and V of subject i by layer, from the cache or computed now.

        sigma: its noise level. network: [1], that of the generated image, whose timestep the network is told.
        encoders: those applied with the same subject.
        """
        subject, strengths = self.subjects[i], [(e.encoding, e.strength) for e in encoders]
        key = features_key(self.patcher, subject, self.layers, sigma, float(network), strengths)
        found = self.newest.get((i, key)) or self.kept.model.get(subject.latent, key, network.device)
        if found is None:
            found = self._computed(i, sigma, network, encoders)
            self.kept.keep(subject.latent, key, found, self.reserve)
        self.newest = {k: kept for k, kept in self.newest.items() if k[1].network == key.network} | {(i, key): found}
        return found

    def _computed(self, i: int, sigma: float, network: Tensor, encoders: Sequence[EncoderAtWork]) -> Features:
        model, subject = self.patcher.model, self.subjects[i]
        if i not in self.conditions:
            self.conditions[i] = text_conditions(self.patcher, subject, network.device)
        with alone(self.patcher):
            return reference_features(
                model=model,
                subject=subject,
                conditions=self.conditions[i],
                layers=self.layers,
                sigma=sigma,
                timestep=model.model_sampling.timestep(network).float(),
                encoders=encoders,
            )


class FeaturesKey(NamedTuple):
    """Everything that the features depend on, except the model and the latent (see host/memory).

    sigma: the reference's noise level. network: that of the generated image, whose timestep the network is told.
    """

    subject: Hashable
    weights: Hashable
    hooks: Hashable
    objects: Hashable
    layers: tuple[Layer, ...]
    sigma: float
    network: float
    encoders: Hashable = ()


def features_key(
    patcher: ModelPatcher,
    subject: Subject,
    layers: list[Layer],
    sigma: float,
    network: float,
    encoders: Sequence[tuple[object, float]] = (),
) -> FeaturesKey:
    """The key of one noise level, for the U-Net's weights as they are now.

    encoders: the encodings applied with this same subject, and their strengths.
    """
    hooks = patcher.current_hooks.hooks if patcher.current_hooks else []
    injections = sorted(patcher.injections.items())
    return FeaturesKey(
        (
            _Same(subject.mask),
            _Same(subject.caption),
            subject.noise_seed,
            subject.picture.shape,  # SDXL reads it
        ),
        _weights(patcher),
        tuple((hook.hook_ref, hook.strength) for hook in hooks),
        (
            tuple((name, _Same(patch)) for name, patch in sorted(patcher.object_patches.items())),
            tuple((name, *map(_Same, injected)) for name, injected in injections),
        ),
        tuple(layers),
        sigma,
        network,
        tuple((_Same(encoding), strength) for encoding, strength in encoders),
    )


def _weights(patcher: ModelPatcher) -> Hashable:
    """A key for the weights and LoRAs, without hooks.

    This is the host's patches_uuid; with weight hooks the host renews that in each run, so the patches are the key.
    """
    if not patcher.hook_patches:
        return patcher.patches_uuid
    loras = tuple((name, *(_of_lora(patch) for patch in patches)) for name, patches in sorted(patcher.patches.items()))
    wrappers = sorted(patcher.weight_wrapper_patches.items())
    return loras, tuple((name, *map(_Same, functions)) for name, functions in wrappers)


def _of_lora(patch: tuple) -> Hashable:
    strength, weights, strength_model, offset, function = patch
    return strength, _Same(weights), strength_model, offset, _Same(function)


class _Same:
    """Compares objects by identity. Holds a weak reference; a strong one to lists and others that have none."""

    def __init__(self, thing: object) -> None:
        self.id = id(thing)
        try:
            self.thing: Callable[[], object | None] = weakref.ref(thing)
        except TypeError:
            self.thing = lambda: thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.id == other.id and self.thing() is other.thing()

    def __hash__(self) -> int:
        return self.id
