"""Contexts for training the host's networks: training mode, and gradient checkpointing."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import comfy.clip_model
import comfy.ldm.modules.attention as host
import comfy.model_patcher
import torch
import torch.utils.checkpoint
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.nn import Parameter

from .adapters import Adapters, is_scaled

log = logging.getLogger(__name__)

RECOMPUTED = (host.SpatialTransformer, comfy.clip_model.CLIPAttention, comfy.clip_model.CLIPMLP)  # and ResBlock


@contextmanager
def on_host(networks: Sequence[Adapters]) -> Iterator[None]:
    """A context for training: out of inference mode, in training mode; all wrappers are removed at the end.

    The host's fp8 layers compute gradients only in training mode.
    """
    with ExitStack() as exits:  # each callback runs at the end, even if another one raises
        for adapters in networks:
            exits.callback(_put_back, adapters.patcher)
        modules = [module for adapters in networks for module in adapters.patcher.model.modules()]
        exits.callback(_set_training, [(module, module.training) for module in modules])
        for module in filter(is_scaled, modules):
            exits.callback(module.register_forward_pre_hook(_with_a_plain_scale).remove)
        _set_training([(module, True) for module in modules])
        with torch.inference_mode(False), torch.enable_grad():
            yield


def _set_training(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, mode in modes:
        module.training = mode


def _put_back(patcher: ModelPatcher) -> None:
    """Remove every wrapper and restore the weights. If the host fails to, it restores them before the next load."""
    try:
        patcher.detach()
        for module in patcher.model.modules():
            comfy.model_patcher.wipe_lowvram_weight(module)
    except BaseException as error:
        patcher.model.current_weight_patches_uuid = uuid.uuid4()  # a new id, so the host unpatches and loads again
        if not isinstance(error, Exception):
            raise
        log.warning("DreamTuner: the tuned network could not be unloaded (%s); its next use unloads it", error)


def _with_a_plain_scale(module: nn.Module, args: Any) -> None:
    """Replace the layer's scale by a tensor that autograd can save, because no wrapper is called for it."""
    scale = cast(Tensor, module.scale_weight)
    if scale.is_inference() and torch.is_grad_enabled():
        module.scale_weight = Parameter(scale.detach().clone(), requires_grad=False)


@contextmanager
def recomputed(network: nn.Module) -> Iterator[None]:
    """A context with gradient checkpointing: a block saves only its input, and runs again in the backward pass.

    For U-Nets and text encoders: the wrapped weights of a layer are copies, which are larger than its activations.
    """
    blocks = [m for m in network.modules() if type(m).__name__ == "ResBlock" or isinstance(m, RECOMPUTED)]

    def twice(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            # the host writes each block's position into one shared dict of options, so each block gets a copy
            args = tuple(dict(arg) if isinstance(arg, dict) else arg for arg in args)
            kwargs = {name: dict(arg) if isinstance(arg, dict) else arg for name, arg in kwargs.items()}
            return torch.utils.checkpoint.checkpoint(
                forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
            )

        return run

    before = [block.__dict__.get("forward") for block in blocks]  # another pack's, or None
    try:
        for block in blocks:
            block.forward = twice(block.forward)
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            block.__dict__.pop("forward", None)
            if own is not None:
                block.forward = own
