"""U-Net and text encoder during training: the host's weight adapters on its own modules, removed at the end.

The host's weights are inference tensors, which autograd cannot save, and it casts, offloads and patches them while
modules run. Its weight wrappers run last and get a fresh copy. So each wrapped weight is detached here, and adapted if
it is trained. The model itself is not changed, and `networks.on_host` removes every wrapper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn
from torch.nn import Parameter

from ...tuning.pairs import generator
from ..settings import KEY
from .file_keys import text_file_keys, transformer_weights, unet_file_keys

Wrapper = Callable[[Tensor], Tensor]


class Adapters:
    """The trained parameters of one network, by their names in a LoRA file.

    parameters: by the file's names; each kind of adapter adds its own. shapes: the file's shapes, where they differ
    from the parameter's.
    """

    def __init__(self, patcher: ModelPatcher, dtype: torch.dtype | None, device: torch.device) -> None:
        self.patcher, self.device = resident(patcher).clone(), device
        self.parameters: dict[str, Parameter] = {}
        self.alphas: dict[str, int] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.wrappers: dict[str, Wrapper] = {}
        if dtype is not None:
            self.patcher.set_model_compute_dtype(dtype)

    def add_lora(self, file_key: str, key: str, rank: int, seed: int) -> None:
        """Add the host's LoRA on that weight. It has no effect at first; its values depend only on (seed, key)."""
        weight = comfy.utils.get_attr(self.patcher.model, key)
        rows, columns = weight.shape[0], weight.shape[1:].numel()
        down = (2 * torch.rand(rank, columns, generator=generator("lora", seed, key)) - 1) / columns**0.5
        with torch.random.fork_rng(devices=[]):  # the host's new layers draw random weights, which are replaced
            adapter = LoRAAdapter(set(), (torch.zeros(rows, rank), down, float(rank), None, None, None)).to_train()
        adapter.to(self.device).requires_grad_(False)
        for part in ("up", "down"):
            parameter = getattr(adapter, f"lora_{part}").weight.requires_grad_(True)
            self.parameters[f"{file_key}.lora_{part}.weight"] = parameter
        kernel = weight.shape[2:]
        self.shapes[f"{file_key}.lora_down.weight"] = torch.Size((rank, weight.shape[1], *kernel))
        self.shapes[f"{file_key}.lora_up.weight"] = torch.Size((rows, rank, *[1] * len(kernel)))
        self.alphas[f"{file_key}.alpha"] = rank
        self.wrappers[key] = adapter

    def add_difference(self, file_key: str, key: str) -> None:
        """Train the full weight (or bias), as a difference from the original."""
        weight = comfy.utils.get_attr(self.patcher.model, key)
        name = f"{file_key}.{'diff_b' if key.endswith('.bias') else 'diff'}"
        difference = self.parameters[name] = Parameter(torch.zeros(weight.shape, device=self.device))
        self.wrappers[key] = lambda weight: (weight + difference).to(weight.dtype)

    def add_differences(self, keys: set[str], prefix: str = "") -> None:
        """`add_difference` for each key that is a weight or bias of the host's layers. prefix: of their file keys."""
        for key in sorted(keys):
            module, part = key.rpartition(".")[::2]
            if part in ("weight", "bias") and hasattr(
                comfy.utils.get_attr(self.patcher.model, module), "weight_function"
            ):
                self.add_difference(prefix + module, key)

    def attach(self) -> None:
        """Add the wrappers to the patcher; all other weights are only detached."""
        for name, module in self.patcher.model.named_modules():
            if not hasattr(module, "weight_function") or isinstance(module, nn.Embedding):
                continue
            for part in ("weight", "bias"):
                if getattr(module, part, None) is not None:
                    key = f"{name}.{part}"
                    adapted = _detached(module, self.wrappers.get(key), part, self.device)
                    self.patcher.add_weight_wrapper(key, adapted)

    def saved(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The tensors of a LoRA file, with kohya's names and shapes: a convolution's have four dimensions."""
        tensors = {
            name: p.detach().to("cpu", dtype, copy=True).reshape(self.shapes.get(name, p.shape))
            for name, p in self.parameters.items()
        }
        return tensors | {name: torch.tensor(float(alpha)) for name, alpha in self.alphas.items()}


def resident(patcher: ModelPatcher) -> ModelPatcher:
    """The same network with weights that stay in place during the backward pass.

    On an NVIDIA GPU the newest hosts stream weights through memory that is reused before the backward pass needs them,
    and add no wrapper to small ones. There this is a separate copy without streaming.
    Raises ValueError, in one sentence, if the host cannot load it a second time.
    """
    if not getattr(patcher, "is_dynamic", lambda: False)():
        return patcher
    try:
        return patcher.clone(disable_dynamic=True)
    except RuntimeError as error:
        raise ValueError(
            "ComfyUI cannot load this model or clip a second time, which tuning needs with dynamic VRAM; load it with "
            "Load Checkpoint, or start ComfyUI with --disable-dynamic-vram."
        ) from error


def _detached(module: nn.Module, adapted: Wrapper | None, part: str, device: torch.device) -> Wrapper:
    scaled = part == "weight" and is_scaled(module)

    def fresh(weight: Tensor) -> Tensor:
        weight = weight.detach()
        if adapted is None:  # newer hosts copy an offloaded weight to a buffer that the next module uses again
            return weight if getattr(module, part).device == weight.device else weight.clone()
        here, weight = weight.device, weight.to(device)  # an offloaded module may compute on another device
        if not scaled:
            return adapted(weight).to(here)
        scale = cast(Tensor, module.scale_weight).to(weight)
        return (adapted(weight * scale) / scale).to(here)

    return fresh


def is_scaled(module: nn.Module) -> bool:
    """Whether this is one of the host's scaled fp8 layers: its weight is the stored tensor times its scale."""
    return hasattr(module, "convert_weight") and getattr(module, "scale_weight", None) is not None


def unet_adapters(
    model: ModelPatcher, method: str, rank: int, seed: int, dtype: torch.dtype, device: torch.device
) -> Adapters:
    """LoRA on every projection of the transformers, or the difference of every weight, by method.

    Subjects applied to the model are removed: the network is trained and sampled without them.
    """
    adapters = Adapters(model, dtype, device)
    adapters.patcher.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    adapters.patcher.remove_additional_models(KEY)
    keys = unet_file_keys(model.model)
    if method == "lora":
        for key in transformer_weights(model.model):
            adapters.add_lora(keys[key], key, rank, seed)
    else:
        adapters.add_differences({f"diffusion_model.{name}" for name in model.model.diffusion_model.state_dict()})
    adapters.attach()
    return adapters


def text_adapters(clip: Any, method: str | None, rank: int, seed: int, device: torch.device) -> Adapters:
    """`unet_adapters` for the text encoders; method None trains none of their weights, only S*."""
    adapters = Adapters(clip.patcher, None, device)
    network = clip.cond_stage_model
    if method == "lora":
        for key, file_key in text_file_keys(network).items():
            adapters.add_lora(file_key, key, rank, seed)
    elif method == "full":
        layers = {name for name in network.state_dict() if ".encoder.layers." in name}
        adapters.add_differences(layers, "text_encoders.")
    adapters.attach()
    return adapters
