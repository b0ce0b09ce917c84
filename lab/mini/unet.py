"""U-Net of the SD1.x kind in plain torch, with the host's module names.

Layout and state-dict keys: ComfyUI comfy/ldm/modules/diffusionmodules/openaimodel.py (UNetModel, convolution
projections, one transformer block at every level) and comfy/ldm/modules/attention.py. Written out here so
that a machine with only torch can train it.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import LATENT_CHANNELS


def timestep_embedding(t: Tensor, width: int, max_period: int = 10000) -> Tensor:
    """Sinusoidal embedding, cosines first: [B] -> [B, width]."""
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, time_width: int):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, n_in), nn.SiLU(), nn.Conv2d(n_in, n_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_width, n_out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, n_out), nn.SiLU(), nn.Dropout(0), nn.Conv2d(n_out, n_out, 3, padding=1)
        )
        self.skip_connection = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        nn.init.zeros_(self.out_layers[3].weight)
        nn.init.zeros_(self.out_layers[3].bias)

    def forward(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """[B, n_in, H, W], time embedding [B, time_width] -> [B, n_out, H, W]."""
        hidden = self.in_layers(h) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(h) + self.out_layers(hidden)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over [B, heads, N, d]; plain products are twice as fast as a CPU's fused bf16."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -math.inf, device=q.device).triu(1)
    return scores.softmax(-1) @ v


class Attention(nn.Module):
    def __init__(self, width: int, context_width: int, head_channels: int):
        super().__init__()
        self.heads = width // head_channels
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Queries x [B, N, width], keys and values from context [B, M, context_width] -> [B, N, width]."""
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N or M, width / heads]
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(attend(q, k, v).transpose(1, 2).flatten(-2))


class GEGLU(nn.Module):
    """[B, N, n_in] -> [B, N, n_out]."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.proj = nn.Linear(n_in, 2 * n_out)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """[B, N, width] -> [B, N, width]."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Dropout(0), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """x [B, N, width], context [B, M, context_width] -> [B, N, width]."""

    def __init__(self, width: int, context_width: int, head_channels: int):
        super().__init__()
        self.attn1 = Attention(width, width, head_channels)
        self.ff = FeedForward(width)
        self.attn2 = Attention(width, context_width, head_channels)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """h [B, width, H, W], context [B, M, context_width] -> [B, width, H, W]."""

    def __init__(self, width: int, context_width: int, head_channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(width, context_width, head_channels)])
        self.proj_out = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        x = self.proj_in(self.norm(h)).permute(0, 2, 3, 1).flatten(1, 2)  # [B, HW, width], no copy in channels-last
        for block in self.transformer_blocks:
            x = block(x, context)
        return h + self.proj_out(x.unflatten(1, h.shape[2:]).permute(0, 3, 1, 2))


def upsampled(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, 2H, 2W], each pixel four times.

    Without F.interpolate, whose backward pass torch 2.13 compiles wrongly (compiled.py).
    """
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


class Downsample(nn.Module):
    """[B, width, H, W] -> [B, width, H/2, W/2]."""

    def __init__(self, width: int):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return self.op(h)


class Upsample(nn.Module):
    """[B, width, H, W] -> [B, width, 2H, 2W]."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return self.conv(upsampled(h))


class FirstConv(nn.Conv2d):
    """The first convolution, with the arguments of the other blocks."""

    def forward(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return super().forward(h)


class UNet(nn.Module):
    def __init__(
        self,
        model_channels: int,
        channel_mult: tuple[int, ...],
        num_res_blocks: int,
        num_head_channels: int,
        context_dim: int,
        latent_channels: int = LATENT_CHANNELS,
    ):
        super().__init__()
        self.model_channels = model_channels
        time_width = 4 * model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, time_width), nn.SiLU(), nn.Linear(time_width, time_width)
        )

        def transformer(width: int) -> SpatialTransformer:
            return SpatialTransformer(width, context_dim, num_head_channels)

        width = model_channels
        self.input_blocks = nn.ModuleList([nn.ModuleList([FirstConv(latent_channels, width, 3, padding=1)])])
        skips = [width]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                block = [ResBlock(width, mult * model_channels, time_width), transformer(mult * model_channels)]
                width = mult * model_channels
                self.input_blocks.append(nn.ModuleList(block))
                skips.append(width)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(width)]))
                skips.append(width)
        self.middle_block = nn.ModuleList(
            [ResBlock(width, width, time_width), transformer(width), ResBlock(width, width, time_width)]
        )
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                block = [
                    ResBlock(width + skips.pop(), mult * model_channels, time_width),
                    transformer(mult * model_channels),
                ]
                width = mult * model_channels
                if level and i == num_res_blocks:
                    block.append(Upsample(width))
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, latent_channels, 3, padding=1))
        nn.init.zeros_(self.out[2].weight)
        nn.init.zeros_(self.out[2].bias)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, control: Sequence[Tensor] = ()) -> Tensor:
        """Noised latents [B, 16, h, w], timesteps [B] in 0..999, text [B, 77, context_dim] -> v [B, 16, h, w].

        control: the ControlNet's output, added to the encoder's features in their order.
        """
        emb = self.time_embed(timestep_embedding(t, self.model_channels).to(x.dtype))
        features = encode(self.input_blocks, self.middle_block, x, emb, context)
        *skips, h = (f + c for f, c in zip(features, control, strict=True)) if control else features
        for block in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            for layer in block:
                h = layer(h, emb, context)
        return self.out(h)


def encode(
    input_blocks: nn.ModuleList,
    middle_block: nn.ModuleList,
    x: Tensor,
    emb: Tensor,
    context: Tensor,
    hint: Tensor | None = None,
) -> list[Tensor]:
    """Features after each input block and after the middle one; hint [B, C, h, w] is added after the first."""
    h, features = x, []
    for number, block in enumerate(input_blocks):
        for layer in block:
            h = layer(h, emb, context)
        if hint is not None and number == 0:
            h = h + hint
        features.append(h)
    for layer in middle_block:
        h = layer(h, emb, context)
    return [*features, h]
