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
    except RuntimeError as error:  # says which tree it looked for
        raise SystemExit(str(error)) from error
    importlib.import_module("lab.mini_family")


class Painter:
    """The exported checkpoint in the host: `paint` makes pictures of captions."""

    def __init__(self, checkpoint: Path):
        import comfy.sd

        self.model, self.clip, self.vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint))

    @torch.inference_mode()
    def paint(
        self, caption: str, seeds: list[int], side: int, steps: int = STEPS, cfg: float = CFG, width: int | None = None
    ) -> torch.Tensor:
        """[len(seeds), side, width, 3] in 0..1; seed by seed, as KSampler with batch 1 would make them."""
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
    """Rows are seeds, columns captions; the captions are printed in order. Below: wide pictures, of every other one."""
    painter = Painter(checkpoint)
    rows = [[painter.paint(caption, seeds, side) for caption in captions]]
    rows.append([painter.paint(caption, seeds, side, width=2 * side) for caption in captions[: len(captions) // 2 * 2 : 2]])
    sheet = torch.cat([torch.cat([column.flatten(0, 1) for column in columns], dim=1) for columns in rows if columns])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet.clamp(0, 1) * 255).round().byte().numpy()).save(path)
    print("; ".join(captions))
    print(path)
