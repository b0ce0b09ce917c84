"""Other ways to put a subject into a picture, written plainly for comparison, and what the lab changes in ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from lab.measure.cast import WHITE
from lab.measure.rows import Made, Prompts
from lab.measure.studio import Reference
from lab.world import caption_of


@dataclass(frozen=True)
class ReferenceOnly:
    """Reference-only as others do it: a second pass whose self-attention inputs are appended; no mask, no log weight.

    The noised reference goes through the U-Net with each row's own text; the inputs of all its self-attentions are
    appended to the picture's own for keys and values, for wanted and unwanted rows alike. That is the host's own
    experiment (ComfyUI_experiments, reference_only.py). Advanced-ControlNet (adv_control/control_reference.py) draws
    the reference's noise anew at each step, and its style fidelity s mixes in a share s of the unwanted rows' output
    that has read no reference. cut_out: give it our own cut-out on white, and not the bare picture.
    """

    cut_out: bool = False
    fidelity: float = 0.0
    anew: bool = False

    def __call__(self, model: Any, clip: Any, reference: Reference, prompts: Prompts) -> Made:
        latent = reference.subject().latent if self.cut_out else start_latent(reference)
        kept: dict[Any, Tensor] = {}
        state = {"writing": False}
        noises = torch.Generator().manual_seed(0)
        fixed = torch.randn(latent.shape, generator=noises)

        def read_or_write(n: Tensor, context: Tensor, value: Tensor, options: Any) -> tuple[Tensor, Tensor, Tensor]:
            layer = (options["block"], options["block_index"])
            if state["writing"]:
                kept[layer] = n
                return n, context, value
            both = torch.cat([n, kept[layer]], dim=1)
            return n, both, both

        def two_passes(apply_model: Any, call: dict[str, Any]) -> Tensor:
            x, sigma, told = call["input"], call["timestep"], call["c"]
            noise = torch.randn(latent.shape, generator=noises) if self.anew else fixed
            clean = model.model.process_latent_in(latent)
            noisy = model.model.model_sampling.noise_scaling(sigma[:1], noise, clean)
            state["writing"] = True
            try:
                apply_model(noisy.expand(len(x), -1, -1, -1), sigma, **told)
            finally:
                state["writing"] = False
            return apply_model(x, sigma, **told)

        patched = model.clone()
        patched.set_model_attn1_patch(read_or_write)
        patched.set_model_unet_function_wrapper(two_passes)
        if self.fidelity:
            for layer in reference.studio.core.host.unet.self_attentions(patched):
                patched.set_model_attn1_replace(_with_fidelity(self.fidelity), *layer)
        return patched, clip, prompts


def _with_fidelity(fidelity: float) -> Any:
    """A replacement of one self-attention whose unwanted rows read the reference less."""
    from comfy.ldm.modules.attention import optimized_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, options: Any) -> Tensor:
        own, heads, sides = q.shape[1], options["n_heads"], options["cond_or_uncond"]
        read = optimized_attention(q, k, v, heads)
        for side, rows in zip(sides, torch.arange(len(q)).chunk(len(sides))):
            if side == 1 and k.shape[1] > own:
                alone = optimized_attention(q[rows], k[rows, :own], v[rows, :own], heads)
                read[rows] = fidelity * alone + (1 - fidelity) * read[rows]
        return read

    return attention


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

        studio, word = reference.studio, reference.case.kind
        seeds = range(9000, 9000 + self.class_pictures)
        texts = [caption_of(word, WHITE), *[caption_of(word, "grass")] * self.class_pictures]
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
    """The reference's whole picture at the size that is drawn: [1, C, h, w]."""
    side = reference.studio.sampling.side
    picture = F.interpolate(reference.picture.movedim(-1, 1), [side] * 2, mode="area").movedim(1, -1)
    return reference.studio.vae.encode(picture)
