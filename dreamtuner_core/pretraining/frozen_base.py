"""The frozen base model of a pre-training: the host's own U-Net, text encoder, VAE, ControlNet and image tower, called
as the host's sampler calls them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.controlnet
import comfy.model_management
import comfy.ops
import comfy.sample
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..encoder.blocks import transformer_blocks
from ..encoder.file import read
from ..encoder.model import EncoderConfig, SubjectEncoder
from ..encoder.tower import ImageTower
from ..host.apply import apply_encoder
from ..host.calls import Text, conditions, unet_output
from ..host.encoder.load import LoadedEncoder, clip_pixels, clip_states, own_states
from ..host.options import Options
from ..host.subject.encode import encode_picture
from ..host.tuning.networks import recomputed
from ..host.tuning.predict import parametrisation
from ..host.unet import self_attentions
from ..subject import Subject

TEXT_TOKENS = 77  # one chunk of CLIP: longer captions are cut, so that rows have one length
BETAS = (0.0, 0.2, 0.5, 1.0)  # the columns of a sheet
SHEET_STEPS, SHEET_CFG, SHEET_SAMPLER, SHEET_SCHEDULER = 20, 4.0, "dpmpp_2m", "karras"


class FrozenBase:
    """All frozen networks of a pre-training (implements objective.Base)."""

    def __init__(self, checkpoint: str, dtype: torch.dtype, controlnet: str = "", clip_vision: str = "") -> None:
        """dtype: of the U-Net and the ControlNet. Raises ValueError, in one sentence, for an invalid file."""
        options = {"dtype": dtype}
        self.model, self.clip, self.vae, _ = _loaded(
            checkpoint, "a checkpoint", lambda path: comfy.sd.load_checkpoint_guess_config(path, model_options=options)
        )
        self_attentions(self.model)  # raises ValueError for a model that is not a supported U-Net
        self.unet = self.model.model.diffusion_model.requires_grad_(False)
        sampling = self.model.model.model_sampling
        self.parametrisation, self.levels = parametrisation(sampling), sampling.sigmas.clone()
        self.control: Any = None
        if controlnet:
            load = lambda path: comfy.controlnet.load_controlnet(path, self.model, options)  # noqa: E731
            self.control = _loaded(controlnet, "a ControlNet", load)
        self.clip_vision: Any = None
        if clip_vision:
            self.clip_vision = _loaded(clip_vision, "a CLIP vision model", comfy.clip_vision.load)
        self.blocks: Mapping[str, Any] = transformer_blocks(self.unet)
        self.tower_side = self.clip_vision.image_size if clip_vision else 0
        self.text = lru_cache(maxsize=256)(self._text)

    def encoder(self, family: str, tower: ImageTower | None = None, res_blocks: int = 2) -> SubjectEncoder:
        """A new encoder for this base, without effect before training. tower: its own image tower; None: the host's."""
        fields: dict[str, Any] = {"res_blocks": res_blocks}
        if tower is None:
            vision = self.clip_vision.model.vision_model
            tokens, width = vision.embeddings.position_embedding.weight.shape
            fields |= {"tower_layers": len(vision.encoder.layers), "tower_width": width, "tokens": tokens}
        config = EncoderConfig.for_unet(self.unet, family, None if tower is None else tower.config, **fields)
        encoder = SubjectEncoder(config)
        if tower is not None:
            encoder.tower = tower
            self.tower_side = tower.config.side
        return encoder

    def ready(self) -> None:
        """Load U-Net and ControlNet completely: the host may have offloaded them for the text encoder or VAE."""
        models = [self.model, *(self.control.get_models() if self.control else ())]
        comfy.model_management.load_models_gpu(models, force_full_load=True)

    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 3, S, S] in 0..1 -> unscaled VAE latents [B, C, h, w]."""
        return self.vae.encode(rearrange(pictures, "b c h w -> b h w c"))

    def scaled(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w], scaled for the U-Net."""
        return self.model.model.process_latent_in(latents)

    def states(self, references: Tensor, encoder: SubjectEncoder) -> Tensor:
        """[B, 3, s, s] in 0..1 -> the tower's hidden states [B, L, T, W]."""
        pictures = rearrange(references, "b c h w -> b h w c")
        if encoder.tower is not None:
            return own_states(encoder.tower, pictures, encoder.config.layers)
        return clip_states(self.clip_vision, clip_pixels(self.clip_vision, pictures), encoder.config.layers)[0]

    def _text(self, caption: str) -> Text:
        cross, pooled = Text.of(self.clip.encode_from_tokens_scheduled(self.clip.tokenize(caption)))
        return Text(cross[:, :TEXT_TOKENS], pooled)

    def conditions(self, noisy: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        """The U-Net's conditions for noisy latents [B, C, h, w]: the text of each row, and SDXL's y."""
        return conditions(self.model.model, noisy, [self.text(caption) for caption in captions])

    def predict(self, noisy: Tensor, sigma: Tensor, captions: Sequence[str], hints: Tensor | None) -> Tensor:
        """The U-Net's raw output [B, C, h, w]. noisy: [B, C, h, w]. sigma: [B]. hints: the layouts [B, 3, S, S]."""
        options: Options = {"sigmas": sigma, "cond_or_uncond": [0]}
        with torch.no_grad(), torch.autocast(noisy.device.type, enabled=False):
            conds = self.conditions(noisy, captions)
            self.ready()
            control = self._layout(noisy, sigma, conds, hints, options)
        return unet_output(self.model.model, noisy, sigma, conds, options, control=control)

    def _layout(
        self, noisy: Tensor, sigma: Tensor, conds: Mapping[str, Tensor], hints: Tensor | None, options: Options
    ) -> dict[str, list[Tensor]] | None:
        """The ControlNet's output; the part for the skips is added by a patch, because the host adds in place."""
        if self.control is None or hints is None:
            return None
        control = self.control
        control.pre_run(self.model.model, self.model.model.model_sampling.percent_to_sigma)
        control.set_cond_hint(hints)
        control.cond_hint = None  # the host cached it in the last step
        added = control.get_control(noisy, sigma, conds, 1, options)
        skips: list[Tensor] = added.pop("output", [])

        def add(h: Tensor, skip: Tensor, now: Options) -> tuple[Tensor, Tensor]:
            number = now["block"][1] + 1
            more = skips[-number] if number <= len(skips) else None
            return h, skip if more is None else skip + more

        options["patches"] = {"output_block_patch": [add]}
        return added

    def recomputed(self) -> Any:
        """A context with gradient checkpointing of the U-Net."""
        return recomputed(self.unet)

    @torch.no_grad()
    def sheet(self, encoder_file: Path, rows: Sequence[Any]) -> Tensor:
        """A sheet [H, W, 3] in 0..1; each row has reference, picture, and one sample of the nodes for each of BETAS.

        A row's noise is always the same; with a ControlNet its layout is used.
        """
        model, origin = read(encoder_file, comfy.ops.manual_cast)
        patcher = ModelPatcher(
            model,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
        encoder = LoadedEncoder(encoder_file.name, patcher, origin, self.clip_vision)
        return torch.cat([self._sheet_row(encoder, row, seed) for seed, row in enumerate(rows)], dim=0)

    def _sheet_row(self, encoder: LoadedEncoder, row: Any, seed: int) -> Tensor:
        """[S, columns * S, 3] in 0..1: one row of the sheet."""
        reference, picture = (rearrange(x, "c h w -> 1 h w c") for x in (row.reference, row.picture))
        latent = torch.zeros_like(self.vae.encode(picture))
        subject = Subject(reference, None, latent, None, encoding=encode_picture(encoder, reference))
        positive, negative = (self._conditioning(caption, row.hint) for caption in (row.caption, ""))
        noise, columns = comfy.sample.prepare_noise(latent, seed), [_resized(reference, picture), picture]
        for beta in BETAS:
            drawn = comfy.sample.sample(
                apply_encoder(self.model, subject, beta),
                noise,
                steps=SHEET_STEPS,
                cfg=SHEET_CFG,
                sampler_name=SHEET_SAMPLER,
                scheduler=SHEET_SCHEDULER,
                positive=positive,
                negative=negative,
                latent_image=latent,
                disable_pbar=True,
                seed=seed,
            )
            columns.append(self.vae.decode(drawn).cpu())
        return torch.cat(columns, dim=2)[0]

    def _conditioning(self, caption: str, hint: Tensor | None) -> list:
        """The host's CONDITIONING, with the layout [3, S, S] if there is a ControlNet."""
        conditioning = self.text(caption).conditioning()
        if self.control is not None and hint is not None:
            control = self.control.copy().set_cond_hint(hint[None])
            conditioning[0][1] |= {"control": control, "control_apply_to_uncond": True}
        return conditioning


def _resized(picture: Tensor, like: Tensor) -> Tensor:
    size = like.shape[1:3]
    resized = F.interpolate(rearrange(picture, "b h w c -> b c h w"), size, mode="bilinear")
    return rearrange(resized, "b c h w -> b h w c")


def _loaded(path: str, what: str, load: Any) -> Any:
    try:
        found = load(path) if Path(path).is_file() else None
    except Exception as error:  # the host raises errors of many types
        raise ValueError(f"{path} is not {what} that ComfyUI can load ({error!s:.200}); set another file.") from error
    if found is None:
        raise ValueError(f"{path} is missing, or is not {what} that ComfyUI can load; set another file.")
    return found
