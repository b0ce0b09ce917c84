"""The kept features as the host's own model management sees them: one more thing that it may move or unload."""

from __future__ import annotations

from collections.abc import Hashable

import comfy.model_management
import comfy.model_patcher
import torch

from ...bank import Features, ReferenceBank, size


class BankKeeper(comfy.model_patcher.ModelPatcher):
    """Stands for a ReferenceBank among the host's loaded models.

    Features are kept on the U-Net's device while there is room. When the host asks for memory they go where the host
    offloads weights to; where that is the same device (no GPU), an unload drops them. All that it has to load is
    loaded: the host never makes room for it.
    """

    def __init__(self, bank: ReferenceBank) -> None:
        self.load_device = comfy.model_management.get_torch_device()  # older hosts ask for the size at once
        super().__init__(bank, self.load_device, comfy.model_management.unet_offload_device())

    def keep(self, key: Hashable, features: Features, reserve: float) -> bool:
        """Put features into the bank on the best device that has room for them. True when kept.

        reserve: bytes that are left free.
        """
        needed = size(features)
        for device in dict.fromkeys((self.load_device, self.offload_device)):
            if self._free_memory(device) > needed + reserve:
                return self.model.put(key, features, device)
        return False

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


def announce(keepers: list[BankKeeper]) -> None:
    """Tell the host of these features, so that it knows what it can ask back.

    After a run: what it loads for one may push out what it was told of before.
    """
    if loaded := [keeper for keeper in keepers if keeper.loaded_size()]:
        comfy.model_management.load_models_gpu(loaded)
