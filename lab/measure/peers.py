"""Other ways to put a subject into a picture, written plainly for comparison, and what the lab changes in ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from lab.measure.rows import Made, Prompts
from lab.measure.studio import BLANK, Reference
from lab.mini.compose import caption_of


def reading_only(model: Any, core: Any, blocks: Sequence[str]) -> Any:
    """A clone in which self-subject attention happens in some blocks only: of input, middle and output.

    The pack has no such setting. To be called before the subject is applied: its wrapper then lies around the pack's.
    """
    from comfy.patcher_extension import WrappersMP

    sampling = core.host.sampling.run
    every = sampling.self_attentions

    def some(patcher: Any) -> dict[Any, Any]:
        return {layer: block for layer, block in every(patcher).items() if layer.block in blocks}

    def around(executor: Any, *args: Any, **kwargs: Any) -> Any:
        with mock.patch.object(sampling, "self_attentions", some):
            return executor(*args, **kwargs)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "lab blocks", around)
    return patched


@dataclass(frozen=True)
class ReferenceOnly:
    """Reference-only as others do it: a second pass whose self-attention inputs are appended; no mask, no log weight.

    The noised reference goes through the U-Net with each picture's own prompt; the inputs of its self-attentions, all
    of them, are appended to the picture's own for keys and values, for wanted and unwanted rows alike. The noise is
    drawn anew at each step, from a generator of the run's own.
    """

    def __call__(self, model: Any, clip: Any, reference: Reference, prompts: Prompts) -> Made:
        latent = start_latent(reference)
        kept: dict[Any, Tensor] = {}
        state = {"writing": False}
        noises = torch.Generator().manual_seed(0)

        def read_or_write(n: Tensor, context: Tensor, value: Tensor, options: Any) -> tuple[Tensor, Tensor, Tensor]:
            layer = (options["block"], options["block_index"])
            if state["writing"]:
                kept[layer] = n
                return n, context, value
            both = torch.cat([n, kept[layer].repeat(len(n) // len(kept[layer]), 1, 1)], dim=1)
            return n, both, both

        def two_passes(apply_model: Any, call: dict[str, Any]) -> Tensor:
            x, sigma, told = call["input"], call["timestep"], call["c"]
            clean = model.model.process_latent_in(latent)
            noise = torch.randn(clean.shape, generator=noises)
            noisy = model.model.model_sampling.noise_scaling(sigma[:1], noise, clean)
            sides = call["cond_or_uncond"]
            pictures = len(x) // len(sides)
            wanted = slice(sides.index(0) * pictures, (sides.index(0) + 1) * pictures)
            prompted = {k: v[wanted] if isinstance(v, Tensor) else v for k, v in told.items()}
            state["writing"] = True
            try:
                apply_model(noisy.expand(pictures, -1, -1, -1), sigma[wanted], **prompted)
            finally:
                state["writing"] = False
            return apply_model(x, sigma, **told)

        patched = model.clone()
        patched.set_model_attn1_patch(read_or_write)
        patched.set_model_unet_function_wrapper(two_passes)
        return patched, clip, prompts


@dataclass(frozen=True)
class TrainedLora:
    """DreamBooth-style LoRA through the host's own TrainLoraNode: the cut-out subject beside pictures of the class."""

    steps: int = 60
    learning_rate: float = 1e-3
    rank: int = 8
    class_pictures: int = 3

    def __call__(self, model: Any, clip: Any, reference: Reference, prompts: Prompts) -> Made:
        import comfy.utils
        from comfy_extras import nodes_train

        studio, word = reference.studio, reference.look.word
        seeds = range(9000, 9000 + self.class_pictures)
        texts = [caption_of([word], BLANK), *[caption_of([word], "grass")] * self.class_pictures]
        drawn = studio.draw(model, clip, texts[1:], list(seeds))
        pictures = torch.cat([reference.subject().picture, drawn])
        latents = [{"samples": latent[None].clone()} for latent in studio.vae.encode(pictures)]
        positive = [studio.text([text], clip) for text in texts]
        settings = {
            "batch_size": 2,
            "steps": self.steps,
            "grad_accumulation_steps": 1,
            "learning_rate": self.learning_rate,
            "rank": self.rank,
            "optimizer": "AdamW",
            "loss_function": "MSE",
            "seed": 0,
            "training_dtype": "fp32",
            "lora_dtype": "fp32",
            "algorithm": "LoRA",
            "gradient_checkpointing": False,
            "existing_lora": "[None]",
        }
        torch.manual_seed(0)  # the node's own seed does not reach its weights' start
        with mock.patch.object(comfy.utils, "PROGRESS_BAR_ENABLED", False):
            given = nodes_train.TrainLoraNode.execute(
                model=[model], latents=latents, positive=positive, **{k: [v] for k, v in settings.items()}
            )
        _, lora, *_ = given.result
        trained = nodes_train.LoraModelLoader.execute(model, lora, 1.0).result[0]
        return trained, clip, prompts


def start_latent(reference: Reference) -> Tensor:
    """The reference's whole picture at the size that is drawn: [1, 4, h, w]."""
    side = reference.studio.sampling.side
    picture = F.interpolate(reference.picture.movedim(-1, 1), [side] * 2, mode="area").movedim(1, -1)
    return reference.studio.vae.encode(picture)
