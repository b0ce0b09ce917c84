"""The pre-training on the host: the mini base, a ControlNet in the host's own layout, and the file that comes out."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.clip_vision
import comfy.supported_models
import folder_paths
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from dreamtuner_pack.dreamtuner_core.encoder import file as encoder_file
from dreamtuner_pack.dreamtuner_core.encoder.model import inserted
from dreamtuner_pack.dreamtuner_core.encoder.tower import ImageTower, TowerConfig
from dreamtuner_pack.dreamtuner_core.host.encoder.load import ENCODERS, encode_picture, load_encoder
from dreamtuner_pack.dreamtuner_core.pretraining import frozen_base
from dreamtuner_pack.dreamtuner_core.pretraining.__main__ import main, pretrain, processes
from dreamtuner_pack.dreamtuner_core.pretraining.config import PretrainingConfig, stratified_level
from dreamtuner_pack.dreamtuner_core.pretraining.data import Batch
from dreamtuner_pack.dreamtuner_core.pretraining.frozen_base import FrozenBase
from dreamtuner_pack.dreamtuner_core.pretraining.loop import Pretraining
from dreamtuner_pack.dreamtuner_core.pretraining.objective import Objective, draw
from dreamtuner_pack.dreamtuner_core.pretraining.tower_file import save_tower
from dreamtuner_pack.nodes.subject_encoder import LoadSubjectEncoder
from families import SHAPES, draw_weights, text, tiny_model
from PIL import Image
from safetensors.torch import load_file, save_file

from lab.demo import CHECKPOINT
from lab.inside import host_tree
from lab.mini.config import LATENT_CHANNELS, PRESETS
from lab.mini.controlnet import ControlNet
from lab.mini.unet import UNet

SIDE = 64
CAPTIONS = ("a cat, on grass", "")


@pytest.fixture(scope="module", autouse=True)
def _mini_family() -> Iterator[None]:
    known = list(comfy.supported_models.models)
    import lab.mini_family  # noqa: F401  it adds to the host's list

    yield
    comfy.supported_models.models[:] = known
    sys.modules.pop("lab.mini_family")  # so that who imports it next adds it again


@pytest.fixture(autouse=True)
def _as_in_the_trainer() -> Iterator[None]:
    AcceleratorState._reset_state(True)
    with torch.inference_mode(False):
        yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A ControlNet and an image tower with drawn weights, and a shard of four samples."""
    folder = tmp_path_factory.mktemp("pretraining")
    preset = PRESETS["cpu"]
    with torch.inference_mode(False):
        unet = UNet(
            *(preset.model_channels, preset.channel_mult, preset.num_res_blocks),
            *(preset.num_head_channels, preset.context_dim),
        )
        control, tower = ControlNet(unet), ImageTower(TowerConfig(side=32, patch=8, width=16, layers=3, heads=2))
        draw_weights(control, 1), draw_weights(tower, 2)
        save_file(control.state_dict(), folder / "control.safetensors")
        save_tower(folder / "tower.safetensors", tower)
    chance = np.random.default_rng(0)
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number in range(4):
            pixels = {"picture": (SIDE, SIDE, 3), "hint": (SIDE, SIDE), "reference": (40, 30, 4)}
            for name, shape in pixels.items():
                png = io.BytesIO()
                Image.fromarray(chance.integers(0, 255, shape, np.uint8)).save(png, "PNG")
                add(tar, f"{number}.{name}.png", png.getvalue())
            add(tar, f"{number}.txt", CAPTIONS[number % 2].encode())
    named = {"controlnet": "control.safetensors", "tower": "tower.safetensors"}
    return {name: str(folder / file) for name, file in named.items()} | {"shard": str(folder / "0.tar")}


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def settings(files: dict[str, str], folder: Path, **changed: Any) -> dict[str, Any]:
    return {
        "checkpoint": str(CHECKPOINT),
        "controlnet": files["controlnet"],
        "tower": files["tower"],
        "shards": [files["shard"]],
        "folder": str(folder),
        "family": "mini",
        "side": SIDE,
        "batch": 2,
        "steps": 2,
        "learning_rate": 1e-3,
        "warm_up": 1,
        "precision": "fp32",
        "workers": 0,
        "sheet_every": 0,
    } | changed


def config_of(files: dict[str, str], folder: Path, **changed: Any) -> PretrainingConfig:
    told = settings(files, folder, **changed)
    return PretrainingConfig(**told | {"shards": tuple(told["shards"])})


def learning(config: PretrainingConfig, base: FrozenBase, identity: bool = False) -> Pretraining:
    """A training of an encoder with a drawn tower; and with drawn weights, where it is not at identity."""
    tower = ImageTower(TowerConfig(side=32, patch=8, width=16, layers=3, heads=2))
    draw_weights(tower, 2)
    torch.manual_seed(0)
    encoder = base.encoder(config.family, tower)
    if not identity:
        draw_weights(encoder, 4)
    AcceleratorState._reset_state(True)  # it knows one precision for each process
    return Pretraining(config, base, encoder, processes(config))


def rows(generator: torch.Generator, controlled: bool = True) -> Batch:
    def pixels(side: int) -> torch.Tensor:
        return torch.rand(2, 3, side, side, generator=generator)

    return Batch(
        *(0, range(2), pixels(SIDE), None, pixels(32)),
        *(pixels(SIDE) if controlled else None, CAPTIONS, torch.zeros(2, 3, dtype=torch.int64)),
    )


def test_the_layout_is_the_hosts_own(files: dict[str, str]) -> None:
    """What the U-Net says with our way around the host's in-place addition is what it says with the host's way."""
    base = FrozenBase(str(CHECKPOINT), torch.float32, files["controlnet"])
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, LATENT_CHANNELS, 8, 8, generator=generator)
    hints = torch.rand(2, 3, SIDE, SIDE, generator=generator)
    sigma = base.levels[[300, 700]]
    noisy = noisy * torch.sqrt(1 + sigma**2)[:, None, None, None]
    with torch.no_grad():
        ours = base.predict(noisy, sigma, CAPTIONS, hints)
        plain = base.predict(noisy, sigma, CAPTIONS, None)
        conds = base.conditions(noisy, CAPTIONS)
        base.control.pre_run(base.model.model, base.model.model.model_sampling.percent_to_sigma)
        base.control.set_cond_hint(hints).cond_hint = None
        control = base.control.get_control(noisy, sigma, conds, 1, {})
        x0 = base.model.model.apply_model(noisy, sigma, **conds, control=control, transformer_options={})
        sampling = base.model.model.model_sampling
        torch.testing.assert_close(sampling.calculate_denoised(sigma, ours, noisy), x0)
    assert float((ours - plain).abs().max()) > 0.01


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_pass_the_host_to_the_encoder_alone(files: dict[str, str], checkpointing: bool) -> None:
    base = FrozenBase(str(CHECKPOINT), torch.float32, files["controlnet"])
    tower = ImageTower(TowerConfig(side=32, patch=8, width=16, layers=3, heads=2))
    draw_weights(tower, 2)
    torch.manual_seed(0)
    encoder = base.encoder("mini", tower).requires_grad_(False)
    for parameter in encoder.learned():
        parameter.requires_grad_(True)
    config = config_of(files, Path("none"))
    objective, gradients = Objective(config, base, encoder), []
    batch = rows(torch.Generator().manual_seed(1))
    for _ in range(2):  # at first the way back ends at the zero output projections
        encoder.zero_grad()
        with ExitStack() as hooks:
            if checkpointing:
                hooks.enter_context(base.recomputed())
            loss = objective(batch, hooks).mean()
            loss.backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
        with torch.no_grad():
            for parameter in encoder.learned():
                parameter -= 0.1 * parameter.grad
    outputs = {name: g for name, g in gradients[0].items() if "to_out" in name}
    assert all(float(g.abs().max()) > 0 for g in outputs.values())
    assert all(float(g.abs().max()) > 0 for g in gradients[1].values())
    assert all(not name.startswith("tower.") for name in gradients[1])
    frozen = [*base.unet.parameters(), *base.control.control_model.parameters(), *base.clip.patcher.model.parameters()]
    assert all(parameter.grad is None for parameter in frozen)
    # the slope along the gradient, by differences, in what the host computes
    name = next(iter(outputs))
    weight = dict(encoder.named_parameters())[name]
    with torch.no_grad(), ExitStack() as hooks:
        weight.grad = None
        before = weight.clone()
        values = []
        for sign in (1, -1):
            weight.copy_(before + sign * 1e-2 * outputs[name] / outputs[name].norm())
            with ExitStack() as inner:
                values.append(float(objective(batch, inner).mean().double()))
        weight.copy_(before)
    encoder.zero_grad()
    with ExitStack() as hooks:
        objective(batch, hooks).mean().backward()
    slope = float((dict(encoder.named_parameters())[name].grad * outputs[name]).sum() / outputs[name].norm())
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(slope, rel=0.05, abs=1e-4)


def test_nothing_frozen_is_differentiated_without_need(files: dict[str, str], tmp_path: Path) -> None:
    """Before the first S-E-A there is no graph, nor is anything computed again; towers and texts never have one."""
    base = FrozenBase(str(CHECKPOINT), torch.float32, files["controlnet"])
    small = learning(config_of(files, tmp_path), base)
    small.batches = iter([[rows(torch.Generator().manual_seed(1))]])
    seen: dict[str, list[bool]] = {}  # by part, for each call of it: whether its output has a graph
    blocks = list(base.blocks.values())
    residual = base.unet.input_blocks[1][0]
    parts = {"first": residual, "its attention": blocks[0].attn1, "last": base.unet.out[2]}
    parts |= {f"text {i}": block.attn2.to_k for i, block in enumerate(blocks)}
    parts |= {"tower": small.encoder.tower.project, "layout": base.control.control_model.middle_block_out[0]}
    parts |= {"VAE": base.vae.first_stage_model, "CLIP": base.clip.patcher.model}

    def note(name: str, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        seen.setdefault(name, []).append(isinstance(output, torch.Tensor) and output.requires_grad)

    for name, part in parts.items():
        leaf = next(module for module in part.modules() if not list(module.children()))
        (leaf if name in ("VAE", "CLIP") else part).register_forward_hook(partial(note, name))
    with base.recomputed():
        small.advance()
    assert seen["first"] == [False]
    assert seen["its attention"][0] is False
    assert seen["last"] == [True]
    assert seen.keys() == parts.keys()
    assert not any(any(graphs) for name, graphs in seen.items() if name not in ("first", "its attention", "last"))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_bf16_a_step_is_nearly_that_in_fp32(files: dict[str, str], tmp_path: Path, checkpointing: bool) -> None:
    """The frozen parts are in bf16, what learns and its gradients in fp32."""
    losses, gradients = [], []
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        config = config_of(files, tmp_path, precision=precision)
        small = learning(config, FrozenBase(str(CHECKPOINT), dtype, files["controlnet"]))
        small.batches = iter([[rows(torch.Generator().manual_seed(1))]])
        with small.base.recomputed() if checkpointing else nullcontext():
            losses.append(small.advance().loss)
        learnt = small.parameters.values()
        assert {p.dtype for p in learnt} | {p.grad.dtype for p in learnt if p.grad is not None} == {torch.float32}
        assert {p.dtype for p in small.base.unet.parameters()} == {dtype}
        gradients.append(torch.cat([p.grad.flatten() for p in learnt]))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.999


class Words:
    """A CLIP of a tiny family's width."""

    patcher = SimpleNamespace(model=torch.nn.Identity())

    def __init__(self, family: str) -> None:
        self.family = family

    def tokenize(self, words: str) -> str:
        return words

    def encode_from_tokens_scheduled(self, words: str) -> list:
        return text(self.family, len(words))


def sizes_of(side: int) -> torch.Tensor:
    """What SDXL is told beside the pooled text: height, width, crop, crop, height, width, each as 256 waves."""
    angles = torch.tensor([side, side, 0, 0, side, side])[:, None] * 10_000 ** (-torch.arange(128) / 128)
    return torch.cat([angles.cos(), angles.sin()], dim=1).flatten()


@pytest.mark.parametrize("family", SHAPES)
def test_a_step_on_every_family(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """At first the loss is the frozen base's own, plainly written; then all that is to learn has a gradient."""
    with torch.no_grad():
        tiny = tiny_model(family, v_prediction=family == "sd2")
    loaded = (tiny, Words(family), None, None)
    monkeypatch.setattr("comfy.sd.load_checkpoint_guess_config", lambda path, model_options: loaded)
    base = FrozenBase(str(CHECKPOINT), torch.float32)
    assert base.parametrisation == ("v" if family == "sd2" else "eps")
    config = config_of(files, tmp_path, controlnet="", drop_text=0.0)
    small = learning(config, base, identity=True)
    batch = replace(rows(torch.Generator().manual_seed(1), controlled=False), latents=torch.randn(2, 4, 8, 8))
    small.batches = iter([[batch], [replace(batch, step=1)]])
    found = small.advance().loss

    losses, unet, alpha_bars = [], base.unet, 1 / (1 + base.levels**2)
    for row, caption in enumerate(CAPTIONS):
        chance = draw(config, 0, row, (4, 8, 8))
        level = stratified_level(0, row, config.batch, 1000, chance.level)
        latent = batch.latents[row] * (0.13025 if family == "sdxl" else 0.18215)
        signal, noise = alpha_bars[level].sqrt(), (1 - alpha_bars[level]).sqrt()
        [[cross, more]] = text(family, len(caption))
        told = {"y": torch.cat([more["pooled_output"][0], sizes_of(SIDE)])[None]} if family == "sdxl" else {}
        with torch.no_grad():
            x = signal * latent + noise * chance.noise
            out = unet(x[None], torch.tensor([float(level)]), context=cross, **told)[0]
        wanted = signal * chance.noise - noise * latent if family == "sd2" else chance.noise
        losses.append(float((out - wanted).square().mean()))
    assert found == pytest.approx(sum(losses) / 2, rel=1e-4)

    small.advance()
    assert all(float(p.grad.abs().max()) > 0 for p in small.parameters.values())
    assert all(p.grad is None for p in unet.parameters())


TOWERS = {
    "config_vitl": (24, 257, (19, 3, 6, 9, 12)),
    "config_h": (32, 257, (25, 4, 8, 12, 16)),
    "config_g": (48, 257, (38, 6, 12, 18, 24)),
    "siglip_384": (27, 729, (21, 3, 7, 10, 14)),
}


@pytest.mark.parametrize("tower", TOWERS)
def test_the_hosts_towers_in_their_full_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tower: str) -> None:
    """All layers and tokens of the host's own, few channels: what the trainer reads is what the node encodes."""
    depth, tokens, layers = TOWERS[tower]
    told = json.loads((host_tree() / "comfy" / f"clip_vision_{tower}.json").read_text())
    few = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "projection_dim": 8}
    (tmp_path / "vision.json").write_text(json.dumps(told | {name: few[name] for name in few if name in told}))
    clip_vision = comfy.clip_vision.ClipVisionModel(tmp_path / "vision.json")
    draw_weights(clip_vision.model, 3)
    clip_vision.model.float()
    monkeypatch.setattr("comfy.clip_vision.load", lambda path: clip_vision)
    base = FrozenBase(str(CHECKPOINT), torch.float32, clip_vision=str(CHECKPOINT))
    encoder = base.encoder("mini")
    assert (encoder.config.tower_layers, encoder.config.tokens, encoder.config.layers) == (depth, tokens, layers)
    encoder_file.save(tmp_path / "e.safetensors", encoder)
    monkeypatch.setattr(type(ENCODERS), "path", lambda self, name: tmp_path / name)
    side = base.tower_side
    with torch.no_grad():
        node = LoadSubjectEncoder.execute("e.safetensors", clip_vision).args[0]
        picture = torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(0))
        states = base.states(picture.movedim(-1, 1), encoder)
        assert states.shape == (1, 5, tokens, 32)
        encoded = encode_picture(node, picture).tokens
    assert encoded.shape == (1, tokens, encoder.config.context_width)
    torch.testing.assert_close(encoded, encoder.tokens(states).detach())


def test_a_whole_run_and_the_file_in_the_host(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_base, "SHEET_STEPS", 3)
    told = settings(files, tmp_path / "run", gradient_checkpointing=True, sheet_every=2, sheet_rows=1)
    lines = [f"{name} = {json.dumps(value)}" for name, value in told.items()]
    (tmp_path / "run.toml").write_text("\n".join(lines))
    assert main([str(tmp_path / "run.toml"), "--comfyui", str(host_tree())]) == 0
    sheet = Image.open(tmp_path / "run" / "sheet_000000002.png")
    assert sheet.size == (6 * SIDE, SIDE)
    columns = np.asarray(sheet).reshape(SIDE, 6, SIDE, 3)
    assert not np.array_equal(columns[:, 2], columns[:, 5])  # strength 0 and 1

    known = dict(folder_paths.folder_names_and_paths)
    try:
        folder_paths.add_model_folder_path("subject_encoders", str(tmp_path / "run"))
        loaded = load_encoder("subject_encoder.safetensors")
    finally:
        folder_paths.folder_names_and_paths.clear()
        folder_paths.folder_names_and_paths.update(known)
    state = load_file(tmp_path / "run" / "step_000000002.safetensors")
    weights = loaded.model.state_dict()
    trained = {name.removeprefix("parameter."): x for name, x in state.items() if name.startswith("parameter.")}
    assert all(torch.equal(weights[name], x) for name, x in trained.items())
    assert trained.keys() == {name for name in weights if not name.startswith("tower.")}
    assert loaded.origin.training["steps"] == 2


def test_the_base_is_as_it_was_after_training(files: dict[str, str]) -> None:
    base = FrozenBase(str(CHECKPOINT), torch.float32)
    tower = ImageTower(TowerConfig(side=32, patch=8, width=16, layers=3, heads=2))
    draw_weights(tower, 2)
    encoder = base.encoder("mini", tower)
    noisy, sigma = torch.randn(1, LATENT_CHANNELS, 8, 8), base.levels[[500]]
    with torch.no_grad():
        before = base.predict(noisy, sigma, CAPTIONS[:1], None)
        with inserted(encoder, base.blocks, torch.randn(1, 16, encoder.config.context_width)):
            identity = base.predict(noisy, sigma, CAPTIONS[:1], None)
        after = base.predict(noisy, sigma, CAPTIONS[:1], None)
    assert torch.equal(before, identity)
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"checkpoint": "/none.safetensors"}, "/none.safetensors is missing, or is not a checkpoint"),
        ({"controlnet": "/none.safetensors"}, "/none.safetensors is missing, or is not a ControlNet"),
        ({"tower": str(CHECKPOINT)}, "is not an image tower's file"),
    ],
)
def test_a_file_that_is_not_there_is_one_sentence(
    files: dict[str, str], tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        pretrain(config_of(files, tmp_path, **changed), host_tree())
