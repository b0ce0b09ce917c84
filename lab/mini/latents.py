"""The training set of the U-Net: every composed picture encoded once, its caption as vocabulary rows.

`latents.pt` holds `latents` [N, 4, h, w] fp16, `captions` [N] (which caption), `rows` [captions, 77] (its
tokens, as rows of the text encoder's embedding) and `token_ids` (the CLIP id of each row but the first).
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import Tensor

from .checkpoint import save_checkpoint
from .config import Preset
from .pictures import open_pictures
from .text import load_vocabulary
from .train_autoencoder import load_autoencoder

BATCH, CHUNK = 16, 800


@torch.inference_mode()
def encode_chunk(task: tuple[Path, Preset, torch.device, int]) -> Tensor:
    """Latents of the pictures from number `start` to the chunk's end: (folder, preset, device, start)."""
    folder, preset, device, start = task
    if device.type == "cpu":
        torch.set_num_threads(1)  # one chunk a core
    model = load_autoencoder(folder, preset).to(device, memory_format=torch.channels_last)
    pixels = torch.from_numpy(open_pictures(folder)[start : min(start + CHUNK, preset.pictures)].copy())
    encoded = []
    for batch in pixels.split(BATCH):
        batch = batch.to(device).permute(0, 3, 1, 2).float() / 255
        with torch.autocast(device.type, torch.bfloat16):
            encoded.append(model.encode(batch).half().cpu())
    return torch.cat(encoded)


def encode_all(folder: Path, preset: Preset, device: torch.device) -> None:
    """Encode the first `preset.pictures` pictures of `folder` into `latents.pt`."""
    texts = json.loads((folder / "captions.json").read_text())[: preset.pictures]
    encoded, tasks = [], [(folder, preset, device, start) for start in range(0, len(texts), CHUNK)]
    with ProcessPoolExecutor(os.cpu_count() if device.type == "cpu" else 1, mp.get_context("spawn")) as workers:
        for latents in workers.map(encode_chunk, tasks):
            encoded.append(latents)
            print(f"encoded {sum(map(len, encoded))} of {len(texts)} pictures", flush=True)
    vocabulary, unique = load_vocabulary(texts), sorted(set(texts))
    number = {caption: i for i, caption in enumerate(unique)}
    save_checkpoint(
        folder / "latents.pt",
        {
            "latents": torch.cat(encoded),
            "captions": torch.tensor([number[caption] for caption in texts]),
            "rows": vocabulary.rows(unique),
            "token_ids": torch.tensor(vocabulary.ids),
        },
    )
