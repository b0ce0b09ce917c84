"""Subject Tuning at its real size: the node's own steps, on a U-Net and text encoders with random weights.

A step is that of the node: a pair of pictures through the text encoder and the U-Net, the backward pass to the LoRA and
S*, and AdamW. It is compared with the U-Net's own forward and backward pass of as many rows, then timed alone until the
steps are done. The time of its parts is measured in a few extra steps, because they wait for the GPU between parts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from lab.bench_rounds import Measured, measured, take
from lab.bench_run import PIXELS, Plan
from lab.bench_unet import TEXT_TOKENS, draw_weights, is_xl, pack, random_text, random_unet

PROFILED = 4  # steps whose parts are timed
SECONDS = 120.0  # most time for the steps; slow steps are not all taken
SMALL = {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}


def tuning_row(plan: Plan, steps: int) -> dict[str, Any]:
    """The figures of one model: the node's defaults, at the bench's size, in SECONDS at most."""
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        patcher = random_unet(plan.model)
        training = _training(plan, patcher)
        plain = _plain(plan, patcher)
        with training:
            training.load()
            rounds = take(plain, {"step": training.tuning.advance}, plan.limits, patcher.load_device)
            parts = [_parts(training, patcher.load_device) for _ in range(PROFILED)]
            taken, row = _steps(training, steps), rounds.row("step")
    return {
        "model": plan.model,
        "latent": plan.latent,
        "rows": 2,
        **row,
        "steps": len(taken),
        "steps_asked": steps,
        "seconds": sum(m.seconds for m in taken),
        "seconds_a_step": statistics.median(m.seconds for m in taken),
        "peak_mib": max(m.peak_mib for m in taken),
        "parts": {name: statistics.median(p[name] for p in parts) for name in parts[0]},
    }


def _steps(training: Any, steps: int) -> list[Measured]:
    """Steps one by one, until they are done or SECONDS are over."""
    end = time.perf_counter() + SECONDS
    taken: list[Measured] = []
    while len(taken) < steps and time.perf_counter() < end:
        taken.append(measured(training.tuning.advance, training.job.device))
    return taken


def _training(plan: Plan, patcher: Any) -> Any:
    """The node's own training with its default settings, at the bench's size; the pairs are random latents."""
    import torch

    subject_module, job_module = pack("subject"), pack("host.tuning.job")
    side, shape = plan.latent * PIXELS, (4, plan.latent, plan.latent)
    pairs = pack("tuning.pairs").Pairs(torch.randn(2, *shape), torch.randn(8, 2, *shape))
    subject = subject_module.Subject(torch.rand(1, side, side, 3), None, torch.randn(1, *shape), None)
    config = pack("tuning.config").TuningConfig()
    job = job_module.Job(patcher, random_clip(plan.model), _NoVae(), subject, "dog", "lab_bench", config)
    return pack("host.tuning.train").Training(job, pairs)


class _NoVae:
    """Takes the place of a VAE, which a step does not use."""

    first_stage_model = None

    def __init__(self) -> None:
        import torch

        self.first_stage_model = torch.nn.Identity()


def random_clip(name: str) -> Any:
    """A CLIP of that model's family with random weights: the host's own classes."""
    import comfy.sd
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.supported_models_base

    if is_xl(name):
        kinds = comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel
    else:
        kinds = comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel
    small = {f"clip_{n}_model_config": SMALL for n in "lg"} if name.startswith("tiny") else {}
    clip = comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(*kinds), model_options=small)
    draw_weights(clip.cond_stage_model)
    return clip


def _plain(plan: Plan, patcher: Any) -> Callable[[], None]:
    """The U-Net's own forward and backward pass of a pair, to all its weights."""
    import torch

    calls, (cross, more) = pack("host.calls"), random_text(plan.model, 1)[0]
    layers = list(pack("host.unet").self_attentions(patcher))
    text = calls.Text(cross[:, :TEXT_TOKENS], more.get("pooled_output"))
    noisy = torch.randn(2, 4, plan.latent, plan.latent, device=patcher.load_device)
    sigma = torch.ones(2, device=patcher.load_device)
    predict, unet = pack("host.tuning.predict").predict, patcher.model.diffusion_model

    def run() -> None:
        unet.requires_grad_(True)
        predict(patcher.model, noisy, sigma, [text, text], layers).square().mean().backward()
        unet.requires_grad_(False)
        unet.zero_grad(set_to_none=True)

    return run


def _parts(training: Any, device: Any) -> dict[str, float]:
    """Seconds of one step by part; the rest is "other"."""
    import torch

    spent = {"text encoder": 0.0, "U-Net": 0.0, "backward": 0.0, "optimizer": 0.0}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = _now(device)
        yield
        spent[name] += _now(device) - start

    def inside(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with timed(name):
                return function(*args, **kwargs)

        return run

    train, tuning = pack("host.tuning.train"), training.tuning
    with (
        mock.patch.object(training, "_encode_with_grad", inside("text encoder", training._encode_with_grad)),
        mock.patch.object(train, "predict", inside("U-Net", train.predict)),
        mock.patch.object(torch.Tensor, "backward", inside("backward", torch.Tensor.backward)),
        mock.patch.object(tuning.optimizer, "step", inside("optimizer", tuning.optimizer.step)),
    ):
        start = _now(device)
        tuning.advance()
        whole = _now(device) - start
    return {**spent, "other": whole - sum(spent.values()), "whole": whole}


def _now(device: Any) -> float:
    """The clock on a GPU; on a CPU the time of all threads, which other work does not change."""
    import torch

    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()
