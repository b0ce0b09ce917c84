"""The network's prediction in training, and whether it is eps or v."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import comfy.ldm.modules.attention as host
import comfy.model_base
import comfy.model_sampling
from torch import Tensor, nn

from ...tuning.losses import EPS, V
from ..calls import Text, conditions, unet_output
from ..kernels import DIFFERENTIABLE
from ..options import Options
from ..unet import Layer


def parametrisation(sampling: nn.Module) -> str:
    """Whether the network predicts eps or v, from the model's sampling. Raises ValueError for anything else."""
    others = (comfy.model_sampling.EDM, comfy.model_sampling.X0)
    if isinstance(sampling, comfy.model_sampling.EPS) and not isinstance(sampling, others):
        return V if isinstance(sampling, comfy.model_sampling.V_PREDICTION) else EPS
    raise ValueError(
        f"expected a model that predicts {EPS} or {V}, but this one's sampling is "
        f"{', '.join(base.__name__ for base in type(sampling).__mro__[1:3])}; link the checkpoint's own model."
    )


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
