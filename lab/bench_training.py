"""A step of the subject encoder's pre-training, compared with the U-Net's own: forward, backward to all its weights.

The step reads the paper's tower (ViT-H/14: 257 tokens, five layers), has S-E-A in every transformer block, and takes
one AdamW step on the trained weights. Tower, text encoder, VAE and ControlNet are left out of both. The ratio is below
1 if the gradients of the frozen weights, which the step does not compute, cost more than S-E-A.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lab.bench_rounds import take
from lab.bench_run import Plan
from lab.bench_unet import MODELS, TEXT_TOKENS, pack, random_unet

TOWER = {"tower_layers": 32, "tower_width": 1280, "tokens": 257}


def training_row(plan: Plan, batch: int = 1) -> dict[str, Any]:
    """The figures of one model, measured in turns with plain steps."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(False), torch.enable_grad():
        plain, step, device = _steps(plan, batch)
        flops = []
        for run in (plain, step):  # warm up both
            with FlopCounterMode(display=False) as counter:
                run()
            flops.append(counter.get_total_flops())
        rounds = take(plain, {"step": step}, plan.limits, device)
    return {
        "model": plan.model,
        "batch": batch,
        "latent": plan.latent,
        **rounds.row("step"),
        "floor": flops[1] / flops[0],
    }


def _steps(plan: Plan, batch: int) -> tuple[Callable[[], None], Callable[[], None], Any]:
    import torch

    encoder_module = pack("encoder.model")
    with torch.no_grad():
        patcher = random_unet(plan.model)
    unet = patcher.model.diffusion_model
    device, dtype = patcher.load_device, patcher.model.get_dtype()
    config = encoder_module.EncoderConfig.for_unet(unet, plan.model, **TOWER)
    encoder = encoder_module.SubjectEncoder(config).to(device)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-5)
    blocks = encoder_module.transformer_blocks(unet)
    more = {}
    if (width := MODELS[plan.model]["adm_in_channels"]) is not None:
        more["y"] = torch.randn(batch, width, device=device, dtype=dtype)
    x = torch.randn(batch, 4, plan.latent, plan.latent, device=device, dtype=dtype)
    text = torch.randn(batch, TEXT_TOKENS, config.context_width, device=device, dtype=dtype)
    states = torch.randn(batch, len(config.layers), config.tokens, config.tower_width, device=device)
    level = torch.full((batch,), 500.0, device=device)

    def loss() -> Any:
        return unet(x, level, context=text, **more).float().square().mean()

    def plain() -> None:
        unet.requires_grad_(True)
        loss().backward()
        unet.requires_grad_(False)
        unet.zero_grad(set_to_none=True)

    def step() -> None:
        autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        with autocast, encoder_module.inserted(encoder, blocks, encoder.tokens(states)):
            loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return plain, step, device
