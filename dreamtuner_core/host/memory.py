"""The cached features in the host's memory management: it can move or unload them like a model."""

from __future__ import annotations

from collections.abc import Hashable

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor

from ..bank import Features, ReferenceBank, size

ATTRIBUTE = "dreamtuner_features"  # of the host's model, which owns the features computed with it
SHARE = 0.25  # of a device's free memory, at most, for the features of all models and subjects together


class KeptFeatures(comfy.model_patcher.ModelPatcher):
    """The features of all subjects, computed with one model: a ReferenceBank among the host's loaded models.

    They are stored on the U-Net's device while there is room. When the host needs memory they move to its offload
    device; if that is the same device (no GPU), unloading drops them. Nothing has to be loaded before a run, so the
    host never frees memory for them.
    """

    model: ReferenceBank

    def __init__(self, load_device: torch.device, offload_device: torch.device) -> None:
        self.load_device = load_device  # older hosts call model_size in the constructor
        super().__init__(ReferenceBank(), load_device, offload_device)

    def begin_run(self) -> None:
        """Count the run for the features of all models, so that those of an unused model are dropped."""
        for kept in self._all():
            kept.model.begin_run()

    def keep(self, latent: Tensor, key: Hashable, features: Features, reserve: float) -> bool:
        """Cache the features of that latent [1, C, h, w] and key on the first device with room. Returns whether it did.

        reserve: bytes to leave free.
        """
        needed = size(features)
        for device in dict.fromkeys((self.load_device, self.offload_device)):
            if self._make_room(device, needed, reserve):
                self.model.put(latent, key, features, device)
                return True
        return False

    def _make_room(self, device: torch.device, needed: int, reserve: float) -> bool:
        """Whether so many bytes fit into the SHARE of the device, after unused features were moved or dropped."""
        everything = self._all()
        kept = sum(each.model.nbytes(device) for each in everything)
        over = kept + needed - SHARE * (kept + self._free_memory(device) - reserve)
        for each in everything:
            if over > 0:
                over -= each._leave(device, over)
        return over <= 0

    def _leave(self, device: torch.device, amount: float) -> int:
        if device == self.offload_device:
            return self.model.drop(device, amount)
        return self.model.move(device, self.offload_device, amount, unused=True)

    def _all(self) -> list[KeptFeatures]:
        """The features of all models loaded in the host, this model's last: the others make room first."""
        listed = (loaded.model for loaded in comfy.model_management.current_loaded_models)
        return [*(model for model in listed if isinstance(model, KeptFeatures) and model is not self), self]

    def _free_memory(self, device: torch.device) -> float:
        """The newest hosts also count memory of streamed weights on a GPU as free."""
        counted = getattr(super(), "get_free_memory", None)
        if counted is None or device.type == "cpu":
            return comfy.model_management.get_free_memory(device)
        return counted(device)

    def model_size(self) -> int:
        return self.loaded_size()

    def loaded_size(self) -> int:
        return self.model.nbytes(self.load_device)

    def current_loaded_device(self) -> torch.device:
        return self.load_device

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> int:
        return 0  # features are copied one noise level at a time

    def partially_unload(
        self, device_to: torch.device, memory_to_free: float = 0, force_patch_weights: bool = False
    ) -> int:
        return self.model.move(self.load_device, device_to, memory_to_free)

    def detach(self, unpatch_all: bool = True) -> ReferenceBank:
        # The host also detaches, with unpatch_all False, what it is about to load again.
        if unpatch_all and self.offload_device == self.load_device:
            self.model.clear()
        elif unpatch_all:
            self.model.move(self.load_device, self.offload_device)
        return self.model

    def announce(self) -> None:
        """Add these features to the host's list of loaded models, so that it can unload them.

        Called after each run, because models loaded for a run may have removed them from the list.
        """
        if self.loaded_size():
            comfy.model_management.load_models_gpu([self])


def kept_features(patcher: comfy.model_patcher.ModelPatcher) -> KeptFeatures:
    """The cached features of this model, shared by all clones of the patcher and freed with the model."""
    model = patcher.model
    if not hasattr(model, ATTRIBUTE):
        setattr(model, ATTRIBUTE, KeptFeatures(patcher.load_device, patcher.offload_device))
    return getattr(model, ATTRIBUTE)
