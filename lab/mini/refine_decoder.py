"""Train the decoder further on the stored latents, the encoder frozen: the U-Net's latent space stays as it is."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .checkpoint import load_checkpoint, load_weights, save_checkpoint
from .config import Preset
from .muon import Muon, split_parameters
from .pictures import open_pictures
from .train_autoencoder import LATENT_NOISE, SAVE_EVERY, learning_rate, load_autoencoder, reconstruction_loss

OUTER_LAYERS = ("1.", "19.")


def draw_pairs(
    latents: Tensor, pictures: np.ndarray, batch: int, crop: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Latents [batch, 4, crop/8, crop/8] and the pixels they stand for [batch, 3, crop, crop] in 0..1."""
    picks = torch.randint(len(latents), (batch,), generator=generator).tolist()
    side = crop // 8
    corners = torch.randint(latents.shape[-1] - side + 1, (batch, 2), generator=generator).tolist()
    z = torch.stack([latents[i, :, y : y + side, x : x + side] for i, (y, x) in zip(picks, corners)])
    pixels = np.stack([pictures[i, 8 * y : 8 * y + crop, 8 * x : 8 * x + crop] for i, (y, x) in zip(picks, corners)])
    return z.float(), torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def refine_decoder(folder: Path, preset: Preset, device: torch.device) -> None:
    """Train to `preset.decoder_steps`, resuming from `folder/decoder.pt`."""
    path, pictures = folder / "decoder.pt", open_pictures(folder)
    latents = torch.load(folder / "latents.pt", weights_only=True, mmap=True)["latents"]
    decoder, start, optimiser_states = load_autoencoder(folder, preset).taesd_decoder, 0, ()
    if (saved := load_checkpoint(path)) is not None:
        load_weights(decoder, saved["model"], path)
        start, optimiser_states = saved["step"], saved["optimisers"]
    decoder = decoder.train().to(device, memory_format=torch.channels_last)
    hidden, outer = split_parameters(decoder, OUTER_LAYERS)
    optimisers = [Muon(hidden, lr=0.0), torch.optim.AdamW(outer, betas=(0.9, 0.99))]
    for optimiser, state in zip(optimisers, optimiser_states):
        optimiser.load_state_dict(state)
    began = time.monotonic()
    for step in range(start, preset.decoder_steps):
        generator = torch.Generator().manual_seed(step)
        z, pixels = draw_pairs(latents, pictures, preset.autoencoder_batch, preset.crop, generator)
        z = z + LATENT_NOISE * torch.randn(z.shape, generator=generator)
        pixels = pixels.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            restored = decoder(z.to(device, memory_format=torch.channels_last)).float()
        loss = reconstruction_loss(restored, pixels)
        decoder.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, preset.decoder_steps)
            optimiser.step()
        done = step + 1
        if done % 50 == 0:
            speed = (done - start) * preset.autoencoder_batch / (time.monotonic() - began)
            print(f"decoder {done}/{preset.decoder_steps} loss {loss.item():.4f} {speed:.0f} crops/s", flush=True)
        if done % SAVE_EVERY == 0 or done == preset.decoder_steps:
            save_checkpoint(
                path, {"model": decoder.state_dict(), "step": done, "optimisers": [o.state_dict() for o in optimisers]}
            )
