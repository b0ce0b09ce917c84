"""Calling the model outside of sampling: its conditions as the host's sampler prepares them, and its raw output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from comfy.model_base import BaseModel
from comfy.patcher_extension import WrappersMP, add_wrapper
from comfy.samplers import encode_model_conds
from torch import Tensor

from .options import Options


class Text(NamedTuple):
    """An encoded text. cross: [1, N, D]. pooled: [1, P] or None."""

    cross: Tensor
    pooled: Tensor | None

    @classmethod
    def of(cls, conditioning: list) -> Text:
        """The first text of the host's CONDITIONING, without a copy."""
        (cross, more), *_ = conditioning
        return cls(cross, more.get("pooled_output"))

    def clone(self) -> Text:
        return Text(self.cross.clone(), None if self.pooled is None else self.pooled.clone())

    def conditioning(self) -> list:
        """As the host's CONDITIONING."""
        return [[self.cross, {"pooled_output": self.pooled}]]


def conditions(
    model: BaseModel, latents: Tensor, texts: Sequence[Text], size: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """The U-Net's inputs beside the noisy latents: text context, SDXL's y, an inpainting model's channels.

    latents: [B or 1, C, h, w]; only shape and device are used. texts: one per row. size: SDXL's height and width in
    pixels; None is 8 times the latents'. Returns keyword arguments for the host's `apply_model`.
    """
    blank = torch.zeros_like(latents[:1])
    found: dict[str, list[Any]] = {}
    for text in texts:
        row: dict[str, Any] = {"model_conds": {}, "pooled_output": text.pooled}
        row["cross_attn"] = text.cross.to(blank.device)
        if size is not None:
            row["height"], row["width"] = size
        made = encode_model_conds(model.extra_conds, [row], blank, blank.device, "positive", latent_image=blank)
        for name, cond in made[0]["model_conds"].items():
            found.setdefault(name, []).append(cond.process_cond(batch_size=1, device=blank.device, area=None))
    return {name: first.concat(others).to(blank.device) for name, (first, *others) in found.items()}


def unet_output(
    model: BaseModel, noisy: Tensor, sigma: Tensor, conditions: Mapping[str, Tensor], options: Options, **more: Any
) -> Tensor:
    """The raw output of the U-Net in float32, [B, C, h, w], before the host turns it into x0.

    noisy: [B, C, h, w]. sigma: [B]. The output is eps or v, as the model was trained. options: transformer_options of
    this call. more: arguments of `apply_model`.
    """
    output: list[Tensor] = []

    def listen(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        output.append(executor(*args, **kwargs))
        return output[-1]

    add_wrapper(WrappersMP.DIFFUSION_MODEL, listen, options)
    model.apply_model(noisy, sigma, **conditions, **more, transformer_options=options)
    return output[0].float()
