"""The training set of the U-Net: every composed picture encoded once, its caption as vocabulary rows.

`latents.pt` holds `latents` [N, 4, h, w] fp16, `captions` [N] (which caption), the same of the wide pictures as
`wide_latents` and `wide_captions`, `rows` [captions, 77] (a caption's tokens, as rows of the text encoder's embedding)
and `token_ids` (the CLIP id of each row but the first).
"""

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import Tensor

from .checkpoint import save_checkpoint
from .config import Preset
from .pictures import open_pictures, read_captions
from .text import load_vocabulary
from .train_autoencoder import load_autoencoder

BATCH, CHUNK = 16, 800


@torch.inference_mode()
def encode_chunk(task: tuple[Path, Preset, torch.device, str, int, int]) -> Tensor:
    """Latents of the pictures `start` to `end` of one shape: (folder, preset, device, shape, start, end)."""
    folder, preset, device, shape, start, end = task
    if device.type == "cpu":
        torch.set_num_threads(1)  # one chunk a core
    model = load_autoencoder(folder, preset).to(device, memory_format=torch.channels_last)
    pixels = torch.from_numpy(open_pictures(folder, shape)[start:end].copy())
    encoded = []
    for batch in pixels.split(BATCH):
        batch = batch.to(device).permute(0, 3, 1, 2).float() / 255
        with torch.autocast(device.type, torch.bfloat16):
            encoded.append(model.encode(batch).half().cpu())
    return torch.cat(encoded)


def encode_all(folder: Path, preset: Preset, device: torch.device) -> None:
    """Encode the first pictures of each shape in `folder`, as many as the preset says, into `latents.pt`."""
    texts = {shape: read_captions(folder, shape)[:count] for shape, count in preset.counts.items()}
    every = [caption for captions in texts.values() for caption in captions]
    vocabulary, unique = load_vocabulary(every), sorted(set(every))
    number = {caption: i for i, caption in enumerate(unique)}
    state = {"rows": vocabulary.rows(unique), "token_ids": torch.tensor(vocabulary.ids)}
    with ProcessPoolExecutor(os.cpu_count() if device.type == "cpu" else 1, mp.get_context("spawn")) as workers:
        for shape, captions in texts.items():
            starts, encoded, name = range(0, len(captions), CHUNK), [], shape.replace("_", " ")
            tasks = [(folder, preset, device, shape, start, min(start + CHUNK, len(captions))) for start in starts]
            for latents in workers.map(encode_chunk, tasks):
                encoded.append(latents)
                print(f"encoded {sum(map(len, encoded))} of {len(captions)} {name}pictures", flush=True)
            state[f"{shape}latents"] = torch.cat(encoded)
            state[f"{shape}captions"] = torch.tensor([number[caption] for caption in captions])
    save_checkpoint(folder / "latents.pt", state)
