"""The LoRA in diffusers: it loads whole, and changes each weight as ComfyUI lets it change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.lora
import comfy.utils
import pytest
import torch
from families import SHAPES
from safetensors.torch import load_file
from torch import Tensor, nn
from tuning_world import WIDTHS, World, folders

pytestmark = pytest.mark.usefixtures("quick_samples")
pytest.importorskip("diffusers")
pytest.importorskip("peft")

BLOCKS: dict[str, dict[str, Any]] = {
    "sd1": {"attention_head_dim": 4, "use_linear_projection": False},
    "sd2": {"attention_head_dim": [2, 4], "use_linear_projection": True},
    "sdxl": {
        "attention_head_dim": [2, 4],
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2],
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
}


def diffusers_unet(family: str) -> nn.Module:
    """The tiny U-Net of that family as diffusers lays it out, its weights of no account."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
            "cross_attention_dim": SHAPES[family]["context_dim"],
            **BLOCKS[family],
        }
    )


def diffusers_text(width: int) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(**sizes, vocab_size=99, projection_dim=width))


def changes(network: nn.Module) -> dict[str, Tensor]:
    """What peft's layers add to each weight of the network they are in."""
    layers = [(name, module) for name, module in network.named_modules() if hasattr(module, "get_delta_weight")]
    return {f"{name}.weight": module.get_delta_weight(module.active_adapters[0]) for name, module in layers}


def host_changes(lora: dict[str, Tensor], keys: dict[str, str], network: nn.Module) -> dict[str, Tensor]:
    """What the host adds, by the name of the weight in its own network."""
    zeros = {key: torch.zeros_like(weight, dtype=torch.float32) for key, weight in network.state_dict().items()}
    patches = comfy.lora.load_lora(lora, keys, log_missing=False)
    return {
        key: comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], zeros[key], key)
        for key, patch in patches.items()
    }


def compare(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert any(change.abs().max() > 1e-4 for change in wanted.values()), "something was learned"
    for name, change in wanted.items():
        torch.testing.assert_close(found[name], change, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_diffusers_finds_the_same_changes(tmp_path: Path, family: str, recwarn: pytest.WarningsRecorder) -> None:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

    pipeline: Any = StableDiffusionXLLoraLoaderMixin if family == "sdxl" else StableDiffusionLoraLoaderMixin
    with folders(tmp_path), torch.inference_mode(False):
        world = World(tmp_path, family)
        world.tune(steps=2)
        path = world.loras / "rex.safetensors"
        lora = load_file(path)
    unet = diffusers_unet(family)
    state, alphas, *_ = pipeline.lora_state_dict(load_file(path), unet_config=unet.config)
    pipeline.load_lora_into_unet(state, alphas, unet)

    model = world.model.model
    names = {
        f"diffusion_model.{own}": name
        for name, own in comfy.utils.unet_to_diffusers(model.model_config.unet_config).items()
    }
    wanted = host_changes(lora, comfy.lora.model_lora_keys_unet(model, {}), model)
    compare(changes(unet), {names[key]: change for key, change in wanted.items()})

    text = host_changes(
        lora, comfy.lora.model_lora_keys_clip(world.clip.cond_stage_model, {}), world.clip.cond_stage_model
    )
    for encoder, prefix in zip(WIDTHS[family], ("text_encoder", "text_encoder_2"), strict=False):
        network = diffusers_text(WIDTHS[family][encoder])
        pipeline.load_lora_into_text_encoder(state, alphas, network, prefix=prefix)
        own = f"clip_{encoder}.transformer.text_model."
        part = {key.removeprefix(own): change for key, change in text.items() if key.startswith(own)}
        compare({name.removeprefix("text_model."): x for name, x in changes(network).items()}, part)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_shapes_are_kohyas(tmp_path: Path, family: str) -> None:
    """LoRAModule of kohya's sd-scripts: a convolution's parts are convolutions, a projection's are matrices."""
    with folders(tmp_path), torch.inference_mode(False):
        world = World(tmp_path, family)
        world.tune(steps=1)
        lora = load_file(world.loras / "rex.safetensors")
    keys, weights = comfy.lora.model_lora_keys_unet(world.model.model, {}), world.model.model.state_dict()
    layers = [name.removesuffix(".alpha") for name in lora if name.startswith("lora_unet") and name.endswith(".alpha")]
    assert len(layers) > 20
    for layer in layers:
        rows, columns, *kernel = weights[keys[layer]].shape
        assert lora[f"{layer}.lora_down.weight"].shape == (2, columns, *kernel)
        assert lora[f"{layer}.lora_up.weight"].shape == (rows, 2, *[1] * len(kernel))
        assert lora[f"{layer}.alpha"].shape == ()
    if family == "sd1":
        assert any(lora[f"{layer}.lora_down.weight"].ndim == 4 for layer in layers)
