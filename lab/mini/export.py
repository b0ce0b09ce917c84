"""Pack the trained parts into one checkpoint for the host's CheckpointLoaderSimple (fp16 safetensors)."""

from pathlib import Path

import torch
from torch import Tensor

from .autoencoder import pad_to_full_width
from .checkpoint import load_checkpoint, write_whole
from .config import Preset
from .train_autoencoder import load_autoencoder

SD_SCALE = 0.18215  # the host multiplies encoded latents by this (latent_formats.SD15); vae_scale undoes it


def checkpoint_weights(folder: Path, preset: Preset) -> dict[str, Tensor]:
    """The host's keys -> weights: averaged U-Net and text encoder, autoencoder at its full width."""
    saved = load_checkpoint(folder / "unet.pt")
    if saved is None:
        raise SystemExit(f"There is no trained U-Net in {folder} yet: run the `train` stage first.")
    token_ids = torch.load(folder / "latents.pt", weights_only=True, mmap=True)["token_ids"]
    weights = {"cond_stage_model.token_ids": token_ids.int()}
    for key, weight in saved["average"].items():
        part, name = key.split(".", 1)
        prefix = {"unet": "model.diffusion_model.", "text": "cond_stage_model.transformer.text_model."}[part]
        weights[prefix + name] = weight.half()
    width = preset.context_dim
    weights["cond_stage_model.transformer.text_projection.weight"] = torch.eye(width).half()
    for key, weight in pad_to_full_width(load_autoencoder(folder, preset).state_dict()).items():
        weights[f"first_stage_model.{key}"] = weight.half()
    weights["first_stage_model.vae_scale"] = torch.tensor(SD_SCALE)
    weights["first_stage_model.vae_shift"] = torch.tensor(0.0)
    return {key: weight.contiguous() for key, weight in weights.items()}


def export(folder: Path, preset: Preset, path: Path) -> None:
    """Write the checkpoint."""
    save(checkpoint_weights(folder, preset), path, "DreamTuner mini base", folder / "unet.pt", preset)


def export_controlnet(folder: Path, preset: Preset, path: Path) -> None:
    """Write the ControlNet, where there is one, for the host's ControlNetLoader."""
    saved = load_checkpoint(folder / "controlnet.pt")
    if saved is None:
        print("there is no ControlNet yet: the `controlnet` stage trains it")
        return
    weights = {key: weight.half().contiguous() for key, weight in saved["average"].items()}
    save(weights, path, "DreamTuner mini ControlNet (silhouette)", folder / "controlnet.pt", preset)


def save(weights: dict[str, Tensor], path: Path, title: str, trained: Path, preset: Preset) -> None:
    """Write whole or not at all, with the steps that the checkpoint `trained` says."""
    from safetensors.torch import save_file  # not needed on a machine that only trains

    steps = load_checkpoint(trained)["step"]
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"modelspec.title": title, "steps": str(steps), "pictures_seen": str(steps * preset.batch)}
    write_whole(path, lambda partial: save_file(weights, partial, metadata=told))
    print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB) after {steps} steps")
