"""What a pre-training step minimises, written out row by row."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent))

from small_pretraining import SmallBase, small_config

from dreamtuner_core.encoder.model import inserted
from dreamtuner_core.pretraining.config import stratified_level
from dreamtuner_core.pretraining.data import Batch
from dreamtuner_core.pretraining.objective import Objective, draw

ROWS = 16
DROPS = {"drop_text": 0.3, "drop_subject": 0.3, "drop_both": 0.2}


class Listening(SmallBase):
    """Latents are halved for the U-Net; what is predicted from is noted."""

    def __init__(self) -> None:
        super().__init__(torch.float64)
        self.levels = self.levels.double()
        self.asked: tuple[Tensor, Tensor, Sequence[str]] | None = None

    def scaled(self, latents: Tensor) -> Tensor:
        return latents / 2

    def predict(self, noisy: Tensor, sigma: Tensor, captions: Sequence[str], hints: Tensor | None) -> Tensor:
        self.asked = noisy, sigma, captions
        return super().predict(noisy, sigma, captions, hints)


def test_each_rows_loss_is_the_written_one(tmp_path: Path) -> None:
    config, base, chance = small_config(["a"], tmp_path, batch=ROWS, **DROPS), Listening(), torch.manual_seed(0)
    encoder = base.encoder()
    with torch.no_grad():
        for parameter in encoder.learned():
            parameter += 0.1 * torch.randn(parameter.shape, generator=chance)
    images = torch.rand(2, ROWS, 3, 32, 32, generator=chance, dtype=torch.float64)
    places = torch.zeros(ROWS, 3)
    batch = Batch(3, range(ROWS), images[0], None, images[1], None, ("a square",) * ROWS, places)
    with ExitStack() as hooks:
        losses = Objective(config, base, encoder)(batch, hooks).detach()
    assert base.asked is not None
    asked, seen = base.asked, set()
    latents = base.encode(images[0]) / 2
    for row in range(ROWS):
        chosen = draw(config, 3, row, latents.shape[1:])
        seen.add((chosen.keeps_text, chosen.keeps_subject))
        sigma = base.levels[stratified_level(3, row, ROWS, len(base.levels), chosen.level)]
        noisy = latents[row] + sigma * chosen.noise
        text = "a square" if chosen.keeps_text else ""
        torch.testing.assert_close((asked[0][row], asked[1][row]), (noisy, sigma))
        assert asked[2][row] == text
        with ExitStack() as hooks, torch.no_grad():
            if chosen.keeps_subject:
                tokens = encoder.tokens(base.states(images[1][row][None], encoder))
                hooks.enter_context(inserted(encoder, base.blocks, tokens, 1.0))
            predicted = SmallBase.predict(base, noisy[None], sigma[None], [text], None)[0]
        a = 1 / torch.sqrt(1 + sigma**2)
        v = (a**2 * noisy - latents[row]) / (a * sigma)
        snr = 1 / sigma**2
        weight = min(snr, torch.tensor(config.min_snr)) / (snr + 1)
        assert float(losses[row]) == pytest.approx(float(weight * ((predicted - v) ** 2).mean()), rel=1e-6)
    assert len(seen) == 4  # every way to drop was tried
