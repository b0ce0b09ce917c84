"""The layout ControlNet of the mini base: a silhouette determines where the subjects are and how large they are.

Zhang et al., arXiv 2302.05543, in the layout that the host's ControlNetLoader reads (comfy/cldm/cldm.py): a copy of
the U-Net's encoder that also sees the hint, its features added to the U-Net's through zero convolutions. The mini
base itself is frozen.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import load_weights, read_checkpoint
from .config import Preset
from .train_unet import MiniBase, v_loss
from .unet import FirstConv, UNet, encode, timestep_embedding

HINT_LAYERS = ((16, 1), (16, 1), (32, 2), (32, 1), (96, 2), (96, 1), (256, 2))  # channels and stride, the host's
HINT_CHANNELS = 3  # the host's hints are pictures


class ControlNet(nn.Module):
    """The trained copy of a U-Net's encoder. Its outputs are zeros at the start."""

    def __init__(self, unet: UNet):
        super().__init__()
        self.model_channels = unet.model_channels
        self.time_embed = copy.deepcopy(unet.time_embed)
        self.input_blocks, self.middle_block = copy.deepcopy(unet.input_blocks), copy.deepcopy(unet.middle_block)
        layers, width = [], HINT_CHANNELS
        for channels, stride in HINT_LAYERS:
            layers += [nn.Conv2d(width, channels, 3, padding=1, stride=stride), nn.SiLU()]
            width = channels
        self.input_hint_block = nn.Sequential(*layers, zeroed(nn.Conv2d(width, unet.model_channels, 3, padding=1)))
        widths = [width_after(block) for block in unet.input_blocks]
        self.zero_convs = nn.ModuleList(nn.Sequential(zeroed(nn.Conv2d(w, w, 1))) for w in widths)
        self.middle_block_out = nn.Sequential(zeroed(nn.Conv2d(widths[-1], widths[-1], 1)))

    def forward(self, x: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> list[Tensor]:
        """As UNet, and hint [B, 3, 8 h, 8 w] in 0..1 -> the features that are added to those of the U-Net's encoder."""
        emb = self.time_embed(timestep_embedding(t, self.model_channels).to(x.dtype))
        *features, middle = encode(self.input_blocks, self.middle_block, x, emb, context, self.input_hint_block(hint))
        return [*(conv(f) for conv, f in zip(self.zero_convs, features)), self.middle_block_out(middle)]


def zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


def width_after(block: Any) -> int:
    """Channels of an input block's output."""
    first = block[0]
    if isinstance(first, FirstConv):
        return first.out_channels
    return first.op.out_channels if hasattr(first, "op") else first.out_layers[3].out_channels


class LayoutControl(nn.Module):
    """The frozen mini base and the ControlNet on it, as train_unet.train_worker trains it."""

    STAGE, FILE, LEARNING_RATE = "controlnet", "controlnet.pt", 5e-4

    def __init__(self, preset: Preset, folder: Path, vocabulary_rows: int):
        super().__init__()
        trained = folder / MiniBase.FILE
        self.base = MiniBase(preset, folder, vocabulary_rows)
        load_weights(self.base, read_checkpoint(trained, MiniBase.STAGE, "average")["average"], trained)
        self.base.requires_grad_(False)
        self.learns = ControlNet(self.base.unet).requires_grad_(True)  # a copy of frozen weights is frozen too

    def optimisers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.AdamW(self.learns.parameters(), betas=(0.9, 0.99), weight_decay=0.0)]

    def loss(self, batch: dict[str, Tensor], alpha_bars: Tensor) -> Tensor:
        hint = (batch["silhouettes"].float() / 255)[:, None].expand(-1, HINT_CHANNELS, -1, -1)

        def predict(x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
            context = self.base.text(tokens)
            return self.base.unet(x, t, context, self.learns(x, t, context, hint))

        return v_loss(predict, batch, alpha_bars)
