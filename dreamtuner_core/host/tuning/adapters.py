"""U-Net and text encoder during training: the host's weight adapters on its own modules, removed at the end.

The host's weights are inference tensors, which autograd cannot save, and it casts, offloads and patches them while
modules run. Its weight wrappers run last and get a fresh copy. So each wrapped weight is detached here, and adapted if
it is trained. The model itself is not changed, and `on_host` removes every wrapper.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import comfy.clip_model
import comfy.ldm.modules.attention as host
import comfy.lora
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.utils
import torch
import torch.utils.checkpoint
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn
from torch.nn import Parameter

from ...tuning.losses import EPS, V
from ...tuning.pairs import generator
from ..calls import Text, conditions, unet_output
from ..kernels import DIFFERENTIABLE
from ..options import Options
from ..settings import KEY
from ..unet import Layer

log = logging.getLogger(__name__)

Wrapper = Callable[[Tensor], Tensor]
RECOMPUTED = (host.SpatialTransformer, comfy.clip_model.CLIPAttention, comfy.clip_model.CLIPMLP)  # and ResBlock


def parametrisation(sampling: nn.Module) -> str:
    """Whether the network predicts eps or v, from the model's sampling. Raises ValueError for anything else."""
    others = (comfy.model_sampling.EDM, comfy.model_sampling.X0)
    if isinstance(sampling, comfy.model_sampling.EPS) and not isinstance(sampling, others):
        return V if isinstance(sampling, comfy.model_sampling.V_PREDICTION) else EPS
    raise ValueError(
        f"expected a model that predicts {EPS} or {V}, but this one's sampling is "
        f"{', '.join(base.__name__ for base in type(sampling).__mro__[1:3])}; link the checkpoint's own model."
    )


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
        with torch.random.fork_rng(devices=[]):  # the host's layers draw weights of their own first
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
        """Train the whole weight (or bias), as a difference from the original."""
        weight = comfy.utils.get_attr(self.patcher.model, key)
        name = f"{file_key}.{'diff_b' if key.endswith('.bias') else 'diff'}"
        difference = self.parameters[name] = Parameter(torch.zeros(weight.shape, device=self.device))
        self.wrappers[key] = lambda weight: (weight + difference).to(weight.dtype)

    def add_differences(self, keys: set[str], prefix: str = "") -> None:
        """The same for all keys that are a weight or bias of the host's layers. prefix: of their file keys."""
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
            "the loader of this model or clip gives ComfyUI no way to load it a second time, which tuning needs where "
            "dynamic VRAM is on; use Load Checkpoint, or start ComfyUI with --disable-dynamic-vram."
        ) from error


def _detached(module: nn.Module, adapted: Wrapper | None, part: str, device: torch.device) -> Wrapper:
    scaled = part == "weight" and _is_scaled(module)

    def fresh(weight: Tensor) -> Tensor:
        weight = weight.detach()
        if adapted is None:  # newer hosts bring an offloaded one in a buffer, which the next module's then fills
            return weight if getattr(module, part).device == weight.device else weight.clone()
        here, weight = weight.device, weight.to(device)  # a module that is offloaded may compute elsewhere
        if not scaled:
            return adapted(weight).to(here)
        scale = cast(Tensor, module.scale_weight).to(weight)
        return (adapted(weight * scale) / scale).to(here)

    return fresh


def unet_adapters(
    model: ModelPatcher, method: str, rank: int, seed: int, dtype: torch.dtype, device: torch.device
) -> Adapters:
    """LoRA on every projection of the transformers, or the difference of every weight, by method.

    Subjects applied to the model are removed: the network learns and samples without them.
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
    """The same for the text encoders; method None trains nothing of them, and only S* learns."""
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


def transformer_weights(model: comfy.model_base.BaseModel) -> list[str]:
    """Keys of the projections in the U-Net's transformers, which LoRA trainers usually train."""
    return [
        f"diffusion_model.{block}.{name}.weight"
        for block, transformer in model.diffusion_model.named_modules()
        if isinstance(transformer, host.SpatialTransformer)
        for name, module in transformer.named_modules()
        if hasattr(module, "weight_function") and getattr(module, "weight", torch.empty(0)).ndim >= 2
    ]


def unet_file_keys(model: comfy.model_base.BaseModel) -> dict[str, str]:
    """Each weight's name in a LoRA file, as other tools write it: diffusers' names for SD1.x and SD2.x, the
    checkpoint's for SDXL. The host reads both."""
    own = isinstance(model, comfy.model_base.SDXL)
    names: dict[str, str] = {}
    for name, key in comfy.lora.model_lora_keys_unet(model, {}).items():
        if name.startswith("lora_unet_") and (key not in names or not own):
            names[key] = name  # the host lists the checkpoint's own names first
    return names


def text_file_keys(network: nn.Module) -> dict[str, str]:
    """Each text encoder projection's name in a LoRA file: lora_te_ for one encoder, lora_te1_ and lora_te2_ for two."""
    names: dict[str, str] = {}
    for name, key in comfy.lora.model_lora_keys_clip(network, {}).items():
        if name.startswith("lora_te") and ".encoder.layers." in key:
            names.setdefault(key, name)
            if hasattr(network, "clip_l") and hasattr(network, "clip_g") and not name.startswith("lora_te_"):
                names[key] = name
    return names


@contextmanager
def on_host(networks: Sequence[Adapters]) -> Iterator[None]:
    """A context for training: out of inference mode, in training mode; all wrappers are removed at the end.

    The host's fp8 layers compute gradients only in training mode.
    """
    with ExitStack() as exits:  # each of these runs at the end, whatever the others do
        for adapters in networks:
            exits.callback(_put_back, adapters.patcher)
        modules = [module for adapters in networks for module in adapters.patcher.model.modules()]
        exits.callback(_set_training, [(module, module.training) for module in modules])
        for module in filter(_is_scaled, modules):
            exits.callback(module.register_forward_pre_hook(_with_a_kept_scale).remove)
        _set_training([(module, True) for module in modules])
        with torch.inference_mode(False), torch.enable_grad():
            yield


def _set_training(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, mode in modes:
        module.training = mode


def _put_back(patcher: ModelPatcher) -> None:
    """Remove every wrapper. If the host fails to restore the weights, it does so before the next load."""
    try:
        patcher.detach()
        for module in patcher.model.modules():
            comfy.model_patcher.wipe_lowvram_weight(module)
    except Exception as error:
        log.warning("DreamTuner: the tuned network could not be unloaded (%s); its next use does it", error)
        patcher.model.current_weight_patches_uuid = uuid.uuid4()  # of no patcher: the host unpatches and loads afresh


def _is_scaled(module: nn.Module) -> bool:
    """Whether it is one of the host's scaled fp8 layers, whose weight is the stored one times its scale."""
    return hasattr(module, "convert_weight") and getattr(module, "scale_weight", None) is not None


def _with_a_kept_scale(module: nn.Module, args: Any) -> None:
    """Replace the layer's scale by a tensor that autograd can save: no wrapper reaches it."""
    scale = cast(Tensor, module.scale_weight)
    if scale.is_inference() and torch.is_grad_enabled():
        module.scale_weight = Parameter(scale.detach().clone(), requires_grad=False)


@contextmanager
def recomputed(network: nn.Module) -> Iterator[None]:
    """A context with gradient checkpointing: a block saves only its input, and runs again in the backward pass.

    For U-Nets and for text encoders, because a layer's wrapped weights are copies, larger than its activations.
    """
    blocks = [m for m in network.modules() if type(m).__name__ == "ResBlock" or isinstance(m, RECOMPUTED)]

    def twice(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            # the host writes each block's place into one and the same dict of options, so a block keeps its own
            args = tuple(dict(arg) if isinstance(arg, dict) else arg for arg in args)
            kwargs = {name: dict(arg) if isinstance(arg, dict) else arg for name, arg in kwargs.items()}
            return torch.utils.checkpoint.checkpoint(
                forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
            )

        return run

    before = [block.__dict__.get("forward") for block in blocks]  # another pack's, where there is one
    try:
        for block in blocks:
            block.forward = twice(block.forward)
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            block.__dict__.pop("forward", None)
            if own is not None:
                block.forward = own


def predict(
    model: comfy.model_base.BaseModel,
    noisy: Tensor,
    sigma: Tensor,
    texts: Sequence[Text],
    layers: Sequence[Layer],
    joined: Callable[[Options], Options] | None = None,
) -> Tensor:
    """The raw output of the network, eps or v: [B, C, h, w].

    noisy: [B, C, h, w]. sigma: [B]. texts: one per row. layers: the U-Net's. joined: adds a subject encoder to the
    call's transformer_options.
    """
    options: Options = {"sigmas": sigma, "cond_or_uncond": [0] * len(texts), **_differentiable(layers)}
    options = options if joined is None else joined(options)
    return unet_output(model, noisy, sigma, conditions(model, noisy, texts), options)


def is_differentiable() -> bool:
    """Whether the host's attention has a backward pass."""
    return host.optimized_attention.__name__ in DIFFERENTIABLE


def _differentiable(layers: Sequence[Layer]) -> Options:
    """Torch's attention in every layer, if the host's own has no backward pass."""
    if is_differentiable():
        return {}

    def attend(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
        return host.attention_pytorch(q, k, v, options["n_heads"], attn_precision=options["attn_precision"])

    return {"patches_replace": {kind: dict.fromkeys(layers, attend) for kind in ("attn1", "attn2")}}
