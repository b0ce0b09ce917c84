"""The paper's augmentations of the reference: elastic transform, flip, blur, random scale, random rotation."""

from __future__ import annotations

import torch
from kornia import augmentation
from torch import Tensor, nn


class Augmentation:
    """Augments a reference on white, [3, s, s] in 0..1 -> [3, s, s]. The result depends on the seed alone.

    side: s, in pixels. flip, elastic, blur: probabilities. rotation: degrees either way. scale_low, scale_high: of the
    framed subject.
    """

    def __init__(
        self,
        side: int,
        flip: float = 0.5,
        rotation: float = 15.0,
        scale_low: float = 0.8,
        scale_high: float = 1.1,
        elastic: float = 0.5,
        blur: float = 0.3,
    ) -> None:
        odd = side // 4 | 1  # kernel size of the elastic field's Gaussian, a quarter of the picture
        self.steps = nn.Sequential(
            augmentation.RandomHorizontalFlip(p=flip),
            augmentation.RandomAffine(rotation, scale=(scale_low, scale_high), p=1.0),
            augmentation.RandomElasticTransform((odd, odd), (side / 16, side / 16), (0.5, 0.5), p=elastic),
            augmentation.RandomGaussianBlur((5, 5), (0.1, 2.0), p=blur),
        )

    def __call__(self, picture: Tensor, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # the library draws from the global generator
            torch.manual_seed(seed)
            black = self.steps(1 - picture[None])[0]  # inverted, because the library fills with zeros
        return (1 - black).clamp(0, 1)
