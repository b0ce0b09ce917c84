"""How other packs put a reference picture into self-attention, in a plain form, to compare their cost with ours.

None of them cuts the subject out or caches anything, so each step of each run pays for the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lab.bench_unet import pack

FIDELITY = 0.5  # style fidelity, as Advanced-ControlNet and diffusers have it by default


class ReferenceOnly:
    """The host's own experiment (ComfyUI_experiments, reference_only.py).

    The reference is the first picture of the batch; all the others append its keys and values to their own.
    """

    def __init__(self, patcher: Any, reference: Tensor) -> None:
        self.reference, self.pictures = reference, 0
        self.patcher = patcher.clone()
        self.patcher.set_model_attn1_patch(self._read)

    def start(self, latent: Tensor) -> Tensor:
        """The batch to sample: the reference, then the latents [B, C, h, w]."""
        joined = torch.cat([self.reference, latent])
        self.pictures = len(joined)
        return joined

    def _read(self, n: Tensor, context: Tensor, value: Tensor, options: Any) -> tuple[Tensor, Tensor, Tensor]:
        both = n.repeat(1, 2, 1)
        for first in range(0, len(n), self.pictures):  # of each side
            both[first + 1 : first + self.pictures, n.shape[1] :] = n[first]
        return n, both, both


class TwoPasses:
    """Advanced-ControlNet's Reference (adv_control/control_reference.py), "reference_attn".

    In each step the reference gets new noise and goes through the complete U-Net with the text of each row. Then the
    picture goes through it, and appends the reference's inputs of each self-attention to its own. The output of the
    negative rows is mixed with one without the reference.
    """

    def __init__(self, patcher: Any, reference: Tensor) -> None:
        self.reference, self.bank = reference, dict[Any, Tensor]()
        self.writing = False
        self.patcher = patcher.clone()
        self.patcher.set_model_attn1_patch(self._read_or_write)
        self.patcher.set_model_unet_function_wrapper(self._two_passes)
        for layer in pack("host.unet").self_attentions(patcher):
            self.patcher.set_model_attn1_replace(self._with_fidelity, *layer)

    def start(self, latent: Tensor) -> Tensor:
        """The batch to sample: the latents [B, C, h, w]."""
        return latent

    def _two_passes(self, apply_model: Callable[..., Tensor], call: dict[str, Any]) -> Tensor:
        x, sigma, conds = call["input"], call["timestep"], call["c"]
        model = self.patcher.model
        clean = model.process_latent_in(self.reference.to(x))
        noisy = model.model_sampling.noise_scaling(sigma[:1], torch.randn_like(clean), clean)
        self.writing = True
        apply_model(noisy.expand(len(x), -1, -1, -1), sigma, **conds)
        self.writing = False
        return apply_model(x, sigma, **conds)

    def _read_or_write(self, n: Tensor, context: Tensor, value: Tensor, options: Any) -> tuple[Tensor, Tensor, Tensor]:
        layer = (options["block"], options["block_index"])
        if self.writing:
            self.bank[layer] = n
            return n, context, value
        both = torch.cat([n, self.bank[layer]], dim=1)
        return n, both, both

    def _with_fidelity(self, q: Tensor, k: Tensor, v: Tensor, options: Any) -> Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        read = optimized_attention(q, k, v, options["n_heads"])
        if self.writing:
            return read
        own, sides = q.shape[1], options["cond_or_uncond"]
        for side, rows in zip(sides, torch.arange(len(q)).chunk(len(sides))):
            if side == 1:
                alone = optimized_attention(q[rows], k[rows, :own], v[rows, :own], options["n_heads"])
                read[rows] = FIDELITY * alone + (1 - FIDELITY) * read[rows]
        return read


class TwoPassesAndStatistics(TwoPasses):
    """diffusers' StableDiffusionReferencePipeline (examples/community), reference_attn and reference_adain.

    Like TwoPasses; in addition the second pass takes the mean and deviation of each block's channels from the first,
    mixed in the same way.
    """

    def __init__(self, patcher: Any, reference: Tensor) -> None:
        super().__init__(patcher, reference)
        unet = patcher.model.diffusion_model
        self.ends = [block[-1] for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks)]

    def _two_passes(self, apply_model: Callable[..., Tensor], call: dict[str, Any]) -> Tensor:
        hooks = [end.register_forward_hook(self._adain) for end in self.ends]
        self.wanted = [side != 1 for side in call["cond_or_uncond"]]
        try:
            return super()._two_passes(apply_model, call)
        finally:
            for hook in hooks:
                hook.remove()

    def _adain(self, block: Any, inputs: Any, h: Tensor) -> Tensor | None:
        variance, mean = torch.var_mean(h, dim=(2, 3), keepdim=True, correction=0)
        if self.writing:
            self.bank[block] = torch.stack([mean, (variance + 1e-6) ** 0.5])
            return None
        mean_r, deviation_r = self.bank[block]
        read = (h - mean) / (variance + 1e-6) ** 0.5 * deviation_r + mean_r
        for wanted, rows in zip(self.wanted, torch.arange(len(h)).chunk(len(self.wanted))):
            if not wanted:
                read[rows] = FIDELITY * h[rows] + (1 - FIDELITY) * read[rows]
        return read


PEERS: dict[str, Callable[[Any, Tensor], Any]] = {
    "reference-only": ReferenceOnly,
    "Advanced-ControlNet": TwoPasses,
    "diffusers": TwoPassesAndStatistics,
}
