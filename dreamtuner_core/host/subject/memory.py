"""The kept features, as the host's own memory management sees them: one more thing that it may move or unload."""

from __future__ import annotations

from collections.abc import Hashable

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor

from ...bank import Features, ReferenceBank, size

ATTRIBUTE = "dreamtuner_features"  # of the host's model, which owns what is kept for it
SHARE = 0.25  # of a device's free memory, for the features of all models and subjects together


class KeptFeatures(comfy.model_patcher.ModelPatcher):
    """The features that one model has computed, of all subjects: a ReferenceBank among the host's loaded models.

    They are kept on the U-Net's device while there is room. When the host asks for memory they go where the host
    offloads weights to; where that is the same device (no GPU), an unload drops them. All that it has to load is
    loaded: the host never makes room for it.
    """

    model: ReferenceBank

    def __init__(self, load_device: torch.device, offload_device: torch.device) -> None:
        self.load_device = load_device  # older hosts ask for the size at once
        super().__init__(ReferenceBank(), load_device, offload_device)

    def begin_run(self) -> None:
        """Count the runs for all models' features, so that those of a model that is not used any more are dropped."""
        for kept in self._all():
            kept.model.begin_run()

    def keep(self, latent: Tensor, key: Hashable, features: Features, reserve: float) -> bool:
        """Keep the features of that latent and key on the best device that has room for them. True when kept.

        reserve: bytes that are left free.
        """
        needed = size(features)
        for device in dict.fromkeys((self.load_device, self.offload_device)):
            if self._make_room(device, needed, reserve):
                self.model.put(latent, key, features, device)
                return True
        return False

    def _make_room(self, device: torch.device, needed: int, reserve: float) -> bool:
        """True where so many bytes fit into the share of the device's memory, when what is not used has left it."""
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
        """Of all models that the host lists, this model's last: those of the others make room first."""
        listed = (loaded.model for loaded in comfy.model_management.current_loaded_models)
        return [*(model for model in listed if isinstance(model, KeptFeatures) and model is not self), self]

    def _free_memory(self, device: torch.device) -> float:
        """Of a GPU the newest hosts count, too, what the weights that they stream would make room for."""
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
        return 0  # features are fetched one noise level at a time

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
        """Tell the host of these features, so that it knows what it can ask back.

        After a run: what it loads for one may push out what it was told of before.
        """
        if self.loaded_size():
            comfy.model_management.load_models_gpu([self])


def kept_features(patcher: comfy.model_patcher.ModelPatcher) -> KeptFeatures:
    """What is kept for this model: one for all clones of the patcher, freed with the model."""
    model = patcher.model
    if not hasattr(model, ATTRIBUTE):
        setattr(model, ATTRIBUTE, KeptFeatures(patcher.load_device, patcher.offload_device))
    return getattr(model, ATTRIBUTE)
