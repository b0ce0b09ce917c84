"""The loss of a step: the frozen base's own, with Eq. 1 (beta 1) in every transformer block.

The frozen base predicts from noise, text and layout. The backward pass runs only from the loss to each S-E-A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..encoder.model import TRAINED_AT, SubjectEncoder, inserted
from ..tuning.losses import min_snr, row_losses, target
from ..tuning.pairs import generator
from .config import PretrainingConfig, stratified_level
from .data import Batch, Row


class Base(Protocol):
    """A frozen base model. parametrisation: "eps" or "v". levels: its noise levels [T], rising. tower_side: pixels."""

    parametrisation: str
    levels: Tensor
    tower_side: int

    @property
    def blocks(self) -> Mapping[str, Any]:
        """The transformer blocks by name, into which the encoder is inserted."""

    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 3, S, S] in 0..1 -> unscaled VAE latents [B, C, h, w]."""

    def scaled(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w], scaled for the U-Net."""

    def states(self, references: Tensor, encoder: SubjectEncoder) -> Tensor:
        """[B, 3, s, s] in 0..1 -> the tower's hidden states [B, L, T, W]."""

    def predict(self, noisy: Tensor, sigma: Tensor, captions: Sequence[str], hints: Tensor | None) -> Tensor:
        """The U-Net's raw output [B, C, h, w]. noisy: [B, C, h, w]. sigma: [B]. hints: the layouts [B, 3, S, S]."""

    def recomputed(self) -> AbstractContextManager[None]:
        """A context with gradient checkpointing of the U-Net."""

    def sheet(self, encoder_file: Path, rows: Sequence[Row]) -> Tensor:
        """Samples for these rows with the encoder in that file, from the same noise every time: [H, W, 3] in 0..1."""


class Draw(NamedTuple):
    """The random numbers of one row. noise: [C, h, w]. level: uniform on 0..1, within its part of the noise levels."""

    level: float
    keeps_text: bool
    keeps_subject: bool
    noise: Tensor


def draw(config: PretrainingConfig, step: int, row: int, shape: Sequence[int]) -> Draw:
    """The random numbers of that row; they depend only on (seed, step, row). shape: (C, h, w) of its latent."""
    chance = generator("row", config.seed, step, row)
    level, dropped = torch.rand(2, generator=chance).tolist()
    both, text = config.drop_both, config.drop_both + config.drop_text
    keeps_text = not dropped < text
    keeps_subject = not (dropped < both or text <= dropped < text + config.drop_subject)
    return Draw(level, keeps_text, keeps_subject, torch.randn(*shape, generator=chance))


class Objective(nn.Module):
    """The loss as a module whose parameters are the encoder's; the frozen base is not part of the module."""

    def __init__(self, config: PretrainingConfig, base: Base, encoder: SubjectEncoder) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        self._base = [base]  # in a list, so that torch and accelerate do not treat it as a submodule

    def forward(self, batch: Batch, hooks: ExitStack) -> Tensor:
        """The loss of each row, [B]. hooks: the caller closes them after the backward pass."""
        base, config, learned = self._base[0], self.config, next(self.encoder.learned())
        device, dtype = learned.device, learned.dtype
        hints = None if batch.hints is None else batch.hints.to(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):  # the frozen networks choose their own types
            latents = base.encode(batch.pictures.to(device)) if batch.latents is None else batch.latents
            latents = base.scaled(latents.to(device, dtype))
            states = base.states(batch.references.to(device), self.encoder).to(device, dtype)
        draws = [draw(config, batch.step, row, latents.shape[1:]) for row in batch.rows]
        levels = [
            stratified_level(batch.step, row, config.batch, len(base.levels), d.level)
            for row, d in zip(batch.rows, draws, strict=True)
        ]
        sigma = base.levels[levels].to(device, dtype)
        noise = torch.stack([d.noise for d in draws]).to(device, dtype)
        beta = TRAINED_AT * torch.tensor([float(d.keeps_subject) for d in draws], device=device, dtype=dtype)
        captions = [caption if d.keeps_text else "" for caption, d in zip(batch.captions, draws, strict=True)]

        hooks.enter_context(inserted(self.encoder, base.blocks, self.encoder.tokens(states), beta))
        predicted = base.predict(latents + sigma[:, None, None, None] * noise, sigma, captions, hints)
        losses = row_losses(predicted, target(base.parametrisation, latents, noise, sigma), None)
        return losses * min_snr(base.parametrisation, sigma, config.min_snr)
