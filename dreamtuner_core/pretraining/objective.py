"""What a step minimises: the frozen base's own loss, with the subject read in every transformer block (Eq. 1, beta 1).

The base is given its noise, text and layout and asked for what it predicts; nothing of it is differentiated but what
lies between an S-E-A and the loss.
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
    """A frozen base model. parametrisation: "eps" or "v"; levels: its noise levels [T], rising; tower_side: pixels."""

    parametrisation: str
    levels: Tensor
    tower_side: int

    @property
    def blocks(self) -> Mapping[str, Any]:
        """The transformer blocks by name, into which the encoder is inserted."""

    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 3, S, S] in 0..1 -> latents [B, C, h, w], as the VAE gives them."""

    def scaled(self, latents: Tensor) -> Tensor:
        """The same, as the U-Net takes them."""

    def states(self, references: Tensor, encoder: SubjectEncoder) -> Tensor:
        """[B, 3, s, s] in 0..1 -> the tower's hidden states [B, L, T, W]."""

    def predict(self, noisy: Tensor, sigma: Tensor, captions: Sequence[str], hints: Tensor | None) -> Tensor:
        """What the U-Net says of [B, C, h, w] at the noise levels [B], told captions and layout [B, 3, S, S]."""

    def recomputed(self) -> AbstractContextManager[None]:
        """Gradient checkpointing of the U-Net while this lasts."""

    def sheet(self, encoder_file: Path, rows: Sequence[Row]) -> Tensor:
        """[H, W, 3] in 0..1: what the base draws of these rows with the encoder in that file, always the same noise."""


class Draw(NamedTuple):
    """What chance decides for one row. level: uniform on 0..1, in the row's part of the noise levels."""

    level: float
    keeps_text: bool
    keeps_subject: bool
    noise: Tensor


def draw(config: PretrainingConfig, step: int, row: int, shape: Sequence[int]) -> Draw:
    """A function of (seed, step, row) alone. shape: of the row's latent."""
    chance = generator("row", config.seed, step, row)
    level, dropped = torch.rand(2, generator=chance).tolist()
    both, text = config.drop_both, config.drop_both + config.drop_text
    keeps_text = not dropped < text
    keeps_subject = not (dropped < both or text <= dropped < text + config.drop_subject)
    return Draw(level, keeps_text, keeps_subject, torch.randn(*shape, generator=chance))


class Objective(nn.Module):
    """The encoder that learns, and around it, not part of the module, the base that does not."""

    def __init__(self, config: PretrainingConfig, base: Base, encoder: SubjectEncoder) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        self._base = [base]  # in a list: not to be found by what saves, moves or shares out a module's parts

    def forward(self, batch: Batch, hooks: ExitStack) -> Tensor:
        """Each row's loss [B]. hooks: to be closed after the backward pass."""
        base, config, learned = self._base[0], self.config, next(self.encoder.learned())
        device, dtype = learned.device, learned.dtype
        hints = None if batch.hints is None else batch.hints.to(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):  # they choose their own types
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
