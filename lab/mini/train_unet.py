"""Train U-Net and text encoder together on the stored latents, or the ControlNet on both.

On a CPU each core has its own worker with one thread (two threads that wait for each other at every
operation stall when anything else runs); the gradients are averaged once per step. All random numbers
depend on (step, worker), so a resumed run goes on exactly like an uninterrupted one.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from .checkpoint import load_checkpoint, load_weights, read_checkpoint, save_checkpoint
from .compiled import compile_checked
from .config import SQUARE, WIDE, Preset
from .diffusion import alphas_cumprod, loss_weight, noised_and_target, spread_timesteps
from .muon import Muon, split_parameters
from .pictures import open_silhouettes
from .text import UNKNOWN, TextEncoder
from .unet import UNet

WARMUP, DECAY_FROM = 50, 0.6
EMA_DECAY = 0.998
CAPTION_DROPOUT, WORD_DROPOUT = 0.10, 0.02
OUTER_LAYERS = ("unet.input_blocks.0.", "unet.out.", "unet.time_embed.")
SAVE_SECONDS = 240
CYCLE = (WIDE, SQUARE, WIDE)  # the shapes of the steps' pictures, in turn


class MiniBase(nn.Module):
    """U-Net and text encoder, as one module to train."""

    STAGE, FILE, LEARNING_RATE = "train", "unet.pt", 3e-3

    def __init__(self, preset: Preset, folder: Path, vocabulary_rows: int):
        super().__init__()
        self.unet = UNet(
            preset.model_channels,
            preset.channel_mult,
            preset.num_res_blocks,
            preset.num_head_channels,
            preset.context_dim,
        )
        self.text = TextEncoder(vocabulary_rows, preset.context_dim, preset.text_layers)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Noised latents [B, 16, h, w], timesteps [B], token rows [B, 77] -> v [B, 16, h, w]."""
        return self.unet(x, t, self.text(tokens))

    @property
    def learns(self) -> nn.Module:
        return self

    def optimisers(self) -> list[torch.optim.Optimizer]:
        hidden, outer = split_parameters(self, OUTER_LAYERS)
        return [
            Muon(hidden, lr=self.LEARNING_RATE, weight_decay=0.01),
            torch.optim.AdamW(outer, betas=(0.9, 0.99), weight_decay=0.0),
        ]

    def loss(self, batch: dict[str, Tensor], alpha_bars: Tensor) -> Tensor:
        return v_loss(self, batch, alpha_bars)


def load_data(folder: Path, silhouettes: bool) -> dict[str, dict[str, Tensor]]:
    """The training set, by the shape of its pictures."""
    keys = ("latents", "captions", "rows", "token_ids")
    stored = read_checkpoint(folder / "latents.pt", "latents", *keys, mmap=True)
    data = {}
    for shape in (SQUARE, WIDE):
        if f"{shape}latents" not in stored:
            continue
        data[shape] = {name: stored[f"{shape}{name}"] for name in ("latents", "captions")}
        data[shape] |= {"rows": stored["rows"], "token_ids": stored["token_ids"]}
        if silhouettes:
            data[shape]["silhouettes"] = torch.from_numpy(open_silhouettes(folder, shape))
    return data


def draw_batch(data: dict[str, Tensor], batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Latents and noise [batch, 16, h, w], timesteps [batch], and token rows [batch, 77].

    Some captions are empty, some words are unknown.
    """
    picks = torch.randint(len(data["latents"]), (batch,), generator=generator)
    tokens = data["rows"][data["captions"][picks]].clone()
    start, end = tokens[0, 0], tokens[0, -1]
    emptied = torch.rand(batch, generator=generator) < CAPTION_DROPOUT
    tokens[emptied, 1:] = end
    words = (tokens != start) & (tokens != end)
    tokens[words & (torch.rand(tokens.shape, generator=generator) < WORD_DROPOUT)] = UNKNOWN
    latents = data["latents"][picks].float()
    hints = {"silhouettes": data["silhouettes"][picks]} if "silhouettes" in data else {}
    return hints | {
        "latents": latents,
        "tokens": tokens,
        "t": spread_timesteps(batch, generator),
        "noise": torch.randn(latents.shape, generator=generator),
    }


def v_loss(predict: Callable[..., Tensor], batch: dict[str, Tensor], alpha_bars: Tensor) -> Tensor:
    """The mean weighted v-loss of a batch of `draw_batch`, a scalar. alpha_bars: [1000]."""
    alpha_bar = alpha_bars[batch["t"]]
    x, v = noised_and_target(batch["latents"], batch["noise"], alpha_bar)
    with torch.autocast(x.device.type, torch.bfloat16):
        predicted = predict(x.contiguous(memory_format=torch.channels_last), batch["t"], batch["tokens"])
    return ((predicted.float() - v).square().mean(dim=(1, 2, 3)) * loss_weight(alpha_bar)).mean()


def learning_rate_at(step: int, steps: int) -> float:
    """Share of the highest rate. Linear warm-up, flat, linear to zero: `steps` may be changed when a run resumes."""
    return max(0.0, min(1, (step + 1) / WARMUP, (1 - step / steps) / (1 - DECAY_FROM)))


def average_gradients(model: nn.Module, workers: int) -> None:
    if workers == 1:
        return
    gradients = [p.grad for p in model.parameters()]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for g, mean in zip(gradients, (flat / workers).split([g.numel() for g in gradients])):
        g.copy_(mean.view_as(g))


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, step: int) -> None:
    """Exponential moving average of the weights, quicker at the start."""
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    weights = model.state_dict()
    torch._foreach_lerp_([average[name] for name in weights], list(weights.values()), 1 - decay)


def train_worker(
    rank: int,
    workers: int,
    folder: Path,
    preset: Preset,
    device: torch.device,
    kind: type,
    steps: int,
    until: float,
) -> None:
    """The complete training of one worker; worker 0 reports and saves. kind: MiniBase or LayoutControl.

    until: a time.monotonic() after which it stops and saves, even if steps are missing; only with one worker.
    """
    if device.type == "cpu":
        torch.set_num_threads(1)
    if workers > 1:
        meeting = f"file://{folder.resolve()}/rendezvous"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=workers)
    path, data = folder / kind.FILE, load_data(folder, silhouettes=kind is not MiniBase)
    torch.manual_seed(0)
    model = kind(preset, folder, len(data[SQUARE]["token_ids"]) + 1)
    saved = load_checkpoint(path, kind.STAGE, "model", "average", "step", "optimisers")
    if saved:
        load_weights(model.learns, saved["model"], path)
    model = model.to(device, memory_format=torch.channels_last)
    learns = model.learns
    average = {name: value.detach().clone() for name, value in learns.state_dict().items()}
    optimisers, start = model.optimisers(), 0
    if saved:
        average = {name: value.to(device) for name, value in saved["average"].items()}
        start = saved["step"]
        for optimiser, state in zip(optimisers, saved["optimisers"]):
            optimiser.load_state_dict(state)
    alpha_bars, shapes = alphas_cumprod().to(device), [shape for shape in CYCLE if shape in data]

    def drawn(shape: str, seed: int) -> dict[str, Tensor]:
        rows = preset.batch // (2 * workers if shape == WIDE else workers)  # as many pixels in either shape
        batch = draw_batch(data[shape], rows, torch.Generator().manual_seed(seed))
        return {name: x.to(device) for name, x in batch.items()}

    if preset.compiled:
        compile_checked(learns, lambda batch: model.loss(batch, alpha_bars), [drawn(shape, 0) for shape in data])
    began, saved_at, losses = time.monotonic(), time.monotonic(), []
    for step in range(start, steps):
        loss = model.loss(drawn(shapes[step % len(shapes)], step * 1009 + rank), alpha_bars)
        model.zero_grad()
        loss.backward()
        average_gradients(learns, workers)
        nn.utils.clip_grad_norm_(learns.parameters(), 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = model.LEARNING_RATE * learning_rate_at(step, steps)
            optimiser.step()
        if rank:
            continue
        update_average(average, learns, step)
        losses.append(loss.detach())
        done, now = step + 1, time.monotonic()
        last = done == steps or now > until
        if done % 50 == 0 or last:
            speed = (done - start) * preset.batch / (now - began)
            mean = torch.stack(losses).mean().item()
            print(f"{path.stem} {done}/{steps} loss {mean:.4f} {speed:.1f} pictures/s", flush=True)
            losses.clear()
        if now - saved_at > SAVE_SECONDS or last:
            save_checkpoint(
                path,
                {
                    "model": learns.state_dict(),
                    "average": average,
                    "step": done,
                    "optimisers": [o.state_dict() for o in optimisers],
                },
            )
            saved_at = now
        if last:
            return


def train(
    folder: Path,
    preset: Preset,
    device: torch.device,
    workers: int,
    kind: type,
    steps: int,
    until: float = math.inf,
) -> None:
    """Train to so many steps, or until that time.monotonic(), resuming from the kind's checkpoint in `folder`."""
    (folder / "rendezvous").unlink(missing_ok=True)
    task = (workers, folder, preset, device, kind, steps, until)
    if workers == 1:
        train_worker(0, *task)
        return
    try:
        mp.spawn(train_worker, task, nprocs=workers)
    except mp.ProcessExitedException as stopped:  # the worker has printed the reason
        raise SystemExit(stopped.exit_code) from None
