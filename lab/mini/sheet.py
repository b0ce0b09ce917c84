"""A sheet of pictures sampled by the host itself: CheckpointLoaderSimple's loader, KSampler's sampler.

Needs a ComfyUI tree (COMFYUI_PATH or --host); mini_family is registered with it for this process.
"""

import importlib
from pathlib import Path

import torch
from PIL import Image

from lab import inside

STEPS, CFG, SAMPLER, SCHEDULER = 20, 4.0, "dpmpp_2m", "karras"


def import_host(host: Path) -> None:
    """Make `comfy` importable from a ComfyUI tree, on the CPU, and register the mini family."""
    try:
        inside.import_host(host)
    except RuntimeError as error:  # names the tree that is missing
        raise SystemExit(str(error)) from error
    importlib.import_module("lab.mini_family")


class Painter:
    """The exported checkpoint in the host: `paint` makes pictures from captions."""

    def __init__(self, checkpoint: Path):
        import comfy.sd

        self.model, self.clip, self.vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint))

    @torch.inference_mode()
    def paint(
        self, caption: str, seeds: list[int], side: int, steps: int = STEPS, cfg: float = CFG, width: int = 0
    ) -> torch.Tensor:
        """Pictures [len(seeds), side, width, 3] in 0..1, one by one, as KSampler with batch 1 makes them."""
        import comfy.sample

        wanted, unwanted = (self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text)) for text in (caption, ""))
        channels = self.model.model.latent_format.latent_channels
        empty = torch.zeros(len(seeds), channels, side // 8, (width or side) // 8)
        noise = torch.cat([comfy.sample.prepare_noise(empty[:1], seed) for seed in seeds])
        latents = comfy.sample.sample(
            self.model, noise, steps, cfg, SAMPLER, SCHEDULER, wanted, unwanted, empty, disable_pbar=True, seed=seeds[0]
        )
        return self.vae.decode(latents)


def paint_sheet(checkpoint: Path, path: Path, captions: list[str], seeds: list[int], side: int) -> None:
    """Rows are seeds, columns captions; the captions are printed in order. Wide pictures have their own sheet."""
    painter = Painter(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, width in ((path.name, side), (f"wide_{path.name}", 2 * side)):
        columns = [painter.paint(caption, seeds, side, width=width) for caption in captions]
        sheet = torch.cat([column.flatten(0, 1) for column in columns], dim=1)
        Image.fromarray((sheet.clamp(0, 1) * 255).round().byte().numpy()).save(path.with_name(name))
        print(path.with_name(name))
    print("; ".join(captions))
