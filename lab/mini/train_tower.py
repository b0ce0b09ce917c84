"""The image tower in the mini base's subject encoder, trained on individuals of the world in a few minutes.

Two losses: each of two views of an individual must find the other among other individuals (InfoNCE, van den Oord et
al., arXiv 1807.03748); and each token must predict the colours of its patch, so that colour and position are encoded.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.world import draw, sample_individual, sample_view

INDIVIDUALS, VIEWS = 400, 3
BATCH, STEPS, LEARNING_RATE = 24, 150, 2e-3
TEMPERATURE, PIXELS_WEIGHT = 0.1, 10.0
CELLS = 4  # a token predicts 4x4 colours of its patch


def looks_of(individuals: int, side: int, frame: Any) -> Tensor:
    """[individuals, views, 3, side, side] in 0..1: each in several views, framed on white as by the encode node."""
    looks, rng = [], np.random.default_rng([4, 0])
    for _ in range(individuals):
        individual = sample_individual(rng)
        for _ in range(VIEWS):
            pixels = torch.from_numpy(draw(individual, sample_view(rng, individual.kind), side)).float()[None] / 255
            looks.append(frame(pixels[..., :3], pixels[..., 3], side)[0][0].movedim(-1, 0))
    return torch.stack(looks).unflatten(0, (-1, VIEWS))


def train_tower(path: Path, pack: Any, steps: int = STEPS, individuals: int = INDIVIDUALS) -> None:
    """Train and write the tower. pack: a function that returns the pack's modules by name."""
    tower_module, augment = pack("encoder.tower"), pack("pretraining.augment")
    torch.manual_seed(0)
    config = tower_module.TowerConfig(width=96, layers=4, heads=4)
    tower, tell = tower_module.ImageTower(config), nn.Linear(config.width, 3 * CELLS**2)
    looks = looks_of(individuals, config.side, pack("subject").frame)
    views = augment.Augmentation(config.side, elastic=0.0, blur=0.0).steps  # the cheap ones
    parameters = [*tower.parameters(), *tell.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.02)
    began, right = time.monotonic(), 0.0
    for step in range(steps):
        torch.manual_seed(step)
        rows = torch.randperm(len(looks))[:BATCH]
        seen = torch.rand(BATCH, VIEWS).argsort(1)[:, :2]  # two views of each
        pairs = torch.cat([looks[rows, seen[:, 0]], looks[rows, seen[:, 1]]])
        with torch.no_grad():
            pictures = (1 - views(1 - pairs)).clamp(0, 1)  # [2 B, 3, s, s]
        tokens = tower.norm(tower.hidden_states(pictures, [config.layers])[:, 0])  # [2 B, T, W]
        a, b = F.normalize(tokens.mean(1), dim=-1).chunk(2)
        alike = a @ b.T / TEMPERATURE
        same = torch.arange(BATCH)
        found = (F.cross_entropy(alike, same) + F.cross_entropy(alike.T, same)) / 2
        told = F.mse_loss(tell(tokens), patches(pictures, config.patch))
        optimiser.zero_grad()
        (found + PIXELS_WEIGHT * told).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 20, 2.5 * (1 - step / steps))
        optimiser.step()
        right = 0.95 * right + 0.05 * (alike.argmax(1) == same).float().mean().item()
        if (step + 1) % 10 == 0 or step + 1 == steps:
            seconds = time.monotonic() - began
            print(f"tower {step + 1}/{steps} finds {right:.0%}, pixels {told.item():.4f}, {seconds:.0f} s", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    pack("pretraining.tower_file").save_tower(path, tower)


def patches(pictures: Tensor, patch: int) -> Tensor:
    """[B, 3, s, s] -> [B, T, 3 * CELLS^2], the colours of each token's patch."""
    cells = F.avg_pool2d(pictures, patch // CELLS).unfold(2, CELLS, CELLS).unfold(3, CELLS, CELLS)
    return cells.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
