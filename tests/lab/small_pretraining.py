"""A pre-training so small that it takes seconds: a torch U-Net of the lab's with drawn weights, a tower, shards.

Run as a script it is one process of such a training: CONFIG.json [step at which it is killed]. "exact" in that file
is whether it computes in float64.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dreamtuner_core.encoder.blocks import transformer_blocks
from dreamtuner_core.encoder.model import EncoderConfig, SubjectEncoder
from dreamtuner_core.encoder.tower import ImageTower, TowerConfig
from dreamtuner_core.pretraining import loop
from dreamtuner_core.pretraining.__main__ import RESUMABLE, processes
from dreamtuner_core.pretraining.config import PretrainingConfig
from dreamtuner_core.pretraining.loop import Pretraining
from dreamtuner_core.pretraining.run import Unfinished, run
from dreamtuner_core.tuning.pairs import generator
from lab.mini.diffusion import alphas_cumprod
from lab.mini.unet import UNet

LARGEST_GRADIENT = loop.LARGEST_GRADIENT = 0.03  # so that it is at work in some of the few steps
TOWER = TowerConfig(side=32, patch=8, width=16, layers=3, heads=2)
CONTEXT = 16
SMALL: dict[str, Any] = {
    "checkpoint": "none",
    "tower": "none",
    "controlnet": "none",
    "family": "small",
    "side": 32,
    "batch": 4,
    "learning_rate": 1e-2,
    "warm_up": 2,
    "drop_text": 0.2,
    "drop_subject": 0.1,
    "drop_both": 0.1,
    "ema": 0.9,
    "min_snr": 5.0,
    "precision": "fp32",
    "gradient_checkpointing": False,
    "workers": 0,
    "shuffle": 4,
    "sheet_every": 0,
    "log_every": 1,
}


class SmallBase:
    """The lab's U-Net, told a text of seeded noise, and the layout as a shift of its input."""

    parametrisation = "v"
    tower_side = TOWER.side

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.unet = UNet(32, (1, 2), 1, 16, CONTEXT, latent_channels=4).requires_grad_(False)
            self.tower = ImageTower(TOWER).requires_grad_(False)
            for parameter in self.unet.parameters():
                parameter += 0.05 * torch.randn(parameter.shape)
        self.unet.to(dtype), self.tower.to(dtype)
        alpha_bars = alphas_cumprod()
        self.levels = ((1 - alpha_bars) / alpha_bars).sqrt()
        self.blocks: Mapping[str, Any] = transformer_blocks(self.unet)

    def encoder(self) -> SubjectEncoder:
        with torch.random.fork_rng():
            torch.manual_seed(2)
            encoder = SubjectEncoder(EncoderConfig.for_unet(self.unet, "small", TOWER))
        encoder.tower = self.tower
        return encoder.to(self.dtype)

    def encode(self, pictures: Tensor) -> Tensor:
        small = F.avg_pool2d(2 * pictures - 1, 8)
        return torch.cat([small, small.mean(1, keepdim=True)], dim=1)

    def scaled(self, latents: Tensor) -> Tensor:
        return latents

    def states(self, references: Tensor, encoder: SubjectEncoder) -> Tensor:
        return self.tower.hidden_states(references.to(self.dtype), encoder.config.layers)

    def predict(self, noisy: Tensor, sigma: Tensor, captions: Sequence[str], hints: Tensor | None) -> Tensor:
        level = torch.searchsorted(self.levels, sigma).clamp(max=len(self.levels) - 1)
        text = torch.cat([torch.randn(1, 3, CONTEXT, generator=generator(caption)) for caption in captions])
        text = text.to(noisy.dtype)
        layout = 0 if hints is None else 0.1 * F.avg_pool2d(hints, 8).mean(1, keepdim=True)
        return self.unet(noisy / torch.sqrt(1 + sigma**2)[:, None, None, None] + layout, level, text)

    def recomputed(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sheet(self, encoder_file: Path, rows: Sequence[Any]) -> Tensor:
        return torch.stack([row.picture for row in rows]).mean(0).movedim(0, -1)


def write_shards(folder: Path, broken: bool = True) -> list[str]:
    """Three shards of five samples; one picture, one mask and the end of one tar file are broken by wish."""
    chance, paths = np.random.default_rng(0), []
    for shard in range(3):
        paths.append(str(folder / f"{shard}.tar"))
        with tarfile.open(paths[-1], "w") as tar:
            for number in range(5):
                for part, content in sample(chance).items():
                    if broken and (shard, number, part) in ((0, 1, "picture.png"), (1, 2, "reference.png")):
                        content = content[: len(content) // 2]
                    info = tarfile.TarInfo(f"{shard}{number}.{part}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    if broken:
        last = Path(paths[-1])
        last.write_bytes(last.read_bytes()[:-9000])
    return paths


def sample(chance: np.random.Generator) -> dict[str, bytes]:
    colour = chance.integers(0, 255, 3)
    picture = np.full((32, 32, 3), 230, np.uint8)
    reference = np.zeros((24, 24, 4), np.uint8)
    picture[8:24, 4:20], reference[4:20, 4:20] = colour, (*colour, 255)
    hint = np.zeros((32, 32), np.uint8)
    hint[8:24, 4:20] = 255
    images = {"picture": picture, "reference": reference, "hint": hint}
    return {f"{name}.png": png(pixels) for name, pixels in images.items()} | {"txt": b"a square"}


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def small_config(shards: Sequence[str], folder: Path, **changed: Any) -> PretrainingConfig:
    return PretrainingConfig(shards=tuple(shards), folder=str(folder), **{**SMALL, **changed})


def training(config: PretrainingConfig, exact: bool = False) -> Pretraining:
    torch.set_num_threads(1)
    base = SmallBase(torch.float64 if exact else torch.float32)
    return Pretraining(config, base, base.encoder(), processes(config))


def main() -> int:
    told = json.loads(Path(sys.argv[1]).read_text())
    exact = told.pop("exact", False)
    config = small_config(**told)
    kill_at = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    small = training(config, exact)
    advance = small.advance

    def advance_or_die() -> Any:
        if kill_at and small.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return advance()

    small.advance = advance_or_die  # type: ignore[method-assign]
    try:
        run(small)
    except Unfinished as error:
        print(error, file=sys.stderr)
        return RESUMABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
