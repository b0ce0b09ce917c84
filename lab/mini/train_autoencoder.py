"""Train the autoencoder on random crops of the composed pictures."""

import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .autoencoder import Autoencoder
from .checkpoint import load_checkpoint, load_weights, read_checkpoint, save_checkpoint
from .compiled import compile_checked
from .config import LATENT_CHANNELS, SQUARE, Preset
from .muon import Muon, split_parameters
from .pictures import compose_chunk, open_pictures

FILE, DECODER = "autoencoder.pt", "decoder.pt"
SAVED = ("autoencoder", "model", "optimisers", "generator", "step")  # the stage, and what it saves
LEARNING_RATE, WARMUP, DECAY_FROM = 3e-3, 30, 0.5  # the rate falls linearly to zero over the last half of the steps
OUTER_LAYERS = ("taesd_encoder.0.", "taesd_encoder.14.", "taesd_decoder.1.", "taesd_decoder.19.")
LATENT_NOISE = 0.05  # added to the latents in training: the decoder must tolerate the U-Net's small errors
SAVE_EVERY = 500


def draw_crops(pictures: np.ndarray, batch: int, crop: int, generator: torch.Generator) -> Tensor:
    """Random crops [batch, 3, crop, crop] in 0..1, channels last."""
    picks = torch.randint(len(pictures), (batch,), generator=generator).tolist()
    corners = torch.randint(pictures.shape[1] - crop + 1, (batch, 2), generator=generator).tolist()
    crops = np.stack([pictures[i, y : y + crop, x : x + crop] for i, (y, x) in zip(picks, corners)])
    return torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255


def edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels of [B, C, H, W], across and down."""
    return pictures.diff(dim=3), pictures.diff(dim=2)


def reconstruction_loss(restored: Tensor, pictures: Tensor) -> Tensor:
    """L1 + MSE, and L1 on edges, which keeps outlines sharp; restored and pictures: [B, 3, H, W]."""
    loss = F.l1_loss(restored, pictures) + F.mse_loss(restored, pictures)
    return loss + 0.5 * sum(F.l1_loss(a, b) for a, b in zip(edges(restored), edges(pictures)))


def unit_variance_loss(latents: Tensor) -> Tensor:
    """Pulls each channel of latents [B, C, h, w] to mean 0 and standard deviation 1."""
    std, mean = torch.std_mean(latents, dim=(0, 2, 3))
    return (mean.square() + std.log().square()).mean()


def losses(model: Autoencoder, crops: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The training loss, and the mean squared error of the restored crops [B, 3, H, W]. noise: [B, 16, H/8, W/8]."""
    with torch.autocast(crops.device.type, torch.bfloat16):
        latents, restored = model(crops, LATENT_NOISE * noise)
    latents, restored = latents.float(), restored.float()
    loss = reconstruction_loss(restored, crops) + 0.1 * unit_variance_loss(latents)
    return loss, F.mse_loss(restored.detach().clamp(0, 1), crops)


def learning_rate(step: int, steps: int) -> float:
    """Share of the highest rate. Linear warm-up, flat, then linear to zero."""
    return min(1, (step + 1) / WARMUP, (1 - step / steps) / (1 - DECAY_FROM))


def train_autoencoder(
    folder: Path, preset: Preset, device: torch.device, until: float = math.inf, decoder_alone: bool = False
) -> bool:
    """Train to `preset.autoencoder_steps`, resuming from `folder/autoencoder.pt`. Returns whether it got there.

    until: a time.monotonic() after which it stops and saves.
    decoder_alone: go on from there to `preset.decoder_steps` in `folder/decoder.pt`. The encoder does not change, so
    the latents do not either: this can run at the same time as the U-Net's training.
    """
    if device.type == "cpu":
        torch.set_num_threads(1)  # one core, as in the U-Net's training
    path, pictures = folder / (DECODER if decoder_alone else FILE), open_pictures(folder)
    steps, highest = preset.autoencoder_steps, LEARNING_RATE
    torch.manual_seed(0)
    model = Autoencoder(preset.widths)
    generator, start = torch.Generator().manual_seed(1), 0
    optimiser_states = None
    if decoder_alone:
        steps, highest = preset.decoder_steps, LEARNING_RATE / 2
        model = load_autoencoder(folder, preset).train()
        model.taesd_encoder.requires_grad_(False)
    if (saved := load_checkpoint(path, *SAVED)) is not None:
        load_weights(model, saved["model"], path)
        generator.set_state(saved["generator"])
        optimiser_states, start = saved["optimisers"], saved["step"]
    model = model.to(device, memory_format=torch.channels_last)
    hidden, outer = split_parameters(model, OUTER_LAYERS)
    optimisers = [Muon(hidden, lr=highest), torch.optim.AdamW(outer, betas=(0.9, 0.99))]
    for optimiser, state in zip(optimisers, optimiser_states or ()):
        optimiser.load_state_dict(state)

    def drawn(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        crops = draw_crops(pictures, preset.autoencoder_batch, preset.crop, generator)
        # drawn on the CPU, so that a resumed run sees the same noise on any device
        noise = torch.randn((len(crops), LATENT_CHANNELS, preset.crop // 8, preset.crop // 8), generator=generator)
        return crops.to(device, memory_format=torch.channels_last), noise.to(device)

    if preset.compiled:
        compile_checked(model, lambda batch: losses(model, *batch)[0], [drawn(torch.Generator().manual_seed(0))])
    began = time.monotonic()
    for step in range(start, steps):
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = highest * learning_rate(step, steps)
        batch = drawn(generator)
        loss, error = losses(model, *batch)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        done = step + 1
        if done % 20 == 0:
            speed = (done - start) * preset.autoencoder_batch / (time.monotonic() - began)
            print(
                f"{path.stem} {done}/{steps} loss {loss.item():.4f} "
                f"psnr {-10 * math.log10(error.item()):.2f} {speed:.0f} crops/s",
                flush=True,
            )
        stopped = time.monotonic() > until
        if done % SAVE_EVERY == 0 or done == steps or stopped:
            save_checkpoint(
                path,
                {
                    "model": model.state_dict(),
                    "optimisers": [o.state_dict() for o in optimisers],
                    "generator": generator.get_state(),
                    "step": done,
                },
            )
        if stopped:
            return done == steps
    return True


def load_autoencoder(folder: Path, preset: Preset) -> Autoencoder:
    """The autoencoder, with the decoder that was trained longer, if there is one."""
    path = folder / DECODER if (folder / DECODER).exists() else folder / FILE
    model = Autoencoder(preset.widths)
    load_weights(model, read_checkpoint(path, *SAVED)["model"], path)
    return model.eval()


@torch.inference_mode()
def held_out_psnr(model: Autoencoder, preset: Preset, count: int = 64) -> float:
    """Mean PSNR in dB over pictures of held-out individuals, in fp32."""
    pixels, _, _ = compose_chunk((preset, SQUARE, 0, count, True))
    pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    restored = model.float().decode(model.encode(pictures)).clamp(0, 1)
    return (-10 * (restored - pictures).square().mean(dim=(1, 2, 3)).log10()).mean().item()
