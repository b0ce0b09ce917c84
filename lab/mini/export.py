"""Pack the trained parts into one checkpoint for the host's CheckpointLoaderSimple (fp16 safetensors)."""

from pathlib import Path

import torch
from torch import Tensor

from .autoencoder import pad_to_full_width
from .checkpoint import load_checkpoint, load_weights, read_checkpoint, save_tensors
from .config import Preset
from .controlnet import ControlNet, LayoutControl
from .train_autoencoder import load_autoencoder
from .train_unet import MiniBase

PREFIXES = {"unet": "model.diffusion_model.", "text": "cond_stage_model.transformer.text_model."}


def export(folder: Path, preset: Preset, path: Path) -> None:
    """Write the checkpoint: averaged U-Net and text encoder, autoencoder at its full width, with the host's keys."""
    trained = folder / MiniBase.FILE
    saved = read_checkpoint(trained, MiniBase.STAGE, "average", "step")
    token_ids = read_checkpoint(folder / "latents.pt", "latents", "token_ids", mmap=True)["token_ids"]
    base = MiniBase(preset, folder, len(token_ids) + 1)
    load_weights(base, saved["average"], trained)
    weights = {"cond_stage_model.token_ids": token_ids.int()}
    for part, prefix in PREFIXES.items():
        for key, weight in getattr(base, part).state_dict().items():
            weights[prefix + key] = weight.half()
    width = preset.context_dim
    weights["cond_stage_model.transformer.text_projection.weight"] = torch.eye(width).half()
    for key, weight in pad_to_full_width(load_autoencoder(folder, preset).state_dict()).items():
        weights[f"first_stage_model.{key}"] = weight.half()
    weights["first_stage_model.vae_scale"] = torch.tensor(1.0)
    weights["first_stage_model.vae_shift"] = torch.tensor(0.0)
    save(weights, path, "DreamTuner mini base", saved["step"], preset)


def export_controlnet(folder: Path, preset: Preset, path: Path) -> None:
    """Write the ControlNet, if there is one, for the host's ControlNetLoader."""
    trained = folder / LayoutControl.FILE
    saved = load_checkpoint(trained, LayoutControl.STAGE, "average", "step")
    if saved is None:
        print("there is no ControlNet yet: the `controlnet` stage trains it")
        return
    control = ControlNet(MiniBase(preset, folder, vocabulary_rows=1).unet)
    load_weights(control, saved["average"], trained)
    weights = {key: weight.half() for key, weight in control.state_dict().items()}
    save(weights, path, "DreamTuner mini ControlNet (silhouette)", saved["step"], preset)


def save(weights: dict[str, Tensor], path: Path, title: str, steps: int, preset: Preset) -> None:
    told = {"modelspec.title": title, "steps": str(steps), "pictures_seen": str(steps * preset.batch)}
    save_tensors(path, weights, told)
    print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB) after {steps} steps")
