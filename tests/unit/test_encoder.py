"""SE and S-E-A (Eq. 1) against a plain writing, in float64; where they go; what a configuration and a file may be."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from formulas import gradients, plain_attention, plain_norm, randn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dreamtuner_core.encoder.blocks import AttentionShape, transformer_blocks
from dreamtuner_core.encoder.file import Origin, read, save
from dreamtuner_core.encoder.model import (
    EncoderConfig,
    SubjectEncoder,
    SubjectEncoderAttention,
    default_layers,
    inserted,
)
from dreamtuner_core.encoder.tower import ImageTower, TowerConfig
from lab.mini.unet import UNet

TOWER = TowerConfig(side=32, patch=8, width=24, layers=4, heads=2)
CONTEXT = 20


def seeded(module: nn.Module, seed: int = 0) -> Any:
    """Every weight drawn, those that begin at zero too, in float64."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return module.double()


def unet() -> UNet:
    return seeded(UNet(32, (1, 2), 1, 16, CONTEXT, latent_channels=4), seed=1)


def encoder(seed: int | None = 2, **changes: Any) -> SubjectEncoder:
    config = EncoderConfig.for_unet(unet(), "mini", **{"tower": TOWER} | changes)
    return SubjectEncoder(config).double() if seed is None else seeded(SubjectEncoder(config), seed)


# --- the formulas, plainly -------------------------------------------------------------------------------------------


def plain_tokens(w: dict[str, Tensor], states: Tensor, res_blocks: int) -> Tensor:
    """ResBlocks over the channel-wise concatenation of the hidden states [B, L, T, W]."""
    h = torch.cat([plain_norm(states[:, i]) for i in range(states.shape[1])], dim=-1)
    for i in range(res_blocks):
        b = {name: w[f"res_blocks.{i}.{name}"] for name in ("norm.weight", "norm.bias", "fc1.weight", "fc2.weight")}
        x = plain_norm(h, b["norm.weight"], b["norm.bias"]) @ b["fc1.weight"].T + w[f"res_blocks.{i}.fc1.bias"]
        x = x / (1 + (-x).exp()) @ b["fc2.weight"].T + w[f"res_blocks.{i}.fc2.bias"]
        if f"res_blocks.{i}.skip.weight" in w:
            h = h @ w[f"res_blocks.{i}.skip.weight"].T + w[f"res_blocks.{i}.skip.bias"]
        h = h + x
    return plain_norm(h, w["norm.weight"], w["norm.bias"])


def plain_sea(w: dict[str, Tensor], h: Tensor, tokens: Tensor, heads: int) -> Tensor:
    """SEA(LN(h), SE(r))."""
    q = plain_norm(h, w["norm.weight"], w["norm.bias"]) @ w["to_q.weight"].T
    out = plain_attention(q, tokens @ w["to_k.weight"].T, tokens @ w["to_v.weight"].T, heads)
    return out @ w["to_out.weight"].T + w["to_out.bias"]


def test_the_tokens_are_the_resblocks_of_the_concatenated_states() -> None:
    one = encoder(res_blocks=3)
    states = randn(2, 3, 16, 24).requires_grad_()
    w = {name: p for name, p in one.named_parameters() if not name.startswith(("attentions", "tower"))}
    tokens, expected = one.tokens(states), plain_tokens(w, states, 3)
    assert tokens.shape == (2, 16, CONTEXT)
    torch.testing.assert_close(tokens, expected, rtol=1e-12, atol=1e-12)
    inputs = [states, *w.values()]
    for found, plain in zip(gradients(tokens, inputs), gradients(expected, inputs)):
        torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("width", "heads", "size"), [(32, 8, 4), (32, 2, 16), (24, 3, 40)])
@pytest.mark.parametrize("rows", [1, 3], ids=["one subject", "a subject a row"])
def test_an_attention_is_the_one_of_eq_1(width: int, heads: int, size: int, rows: int) -> None:
    layer = seeded(SubjectEncoderAttention(AttentionShape(width, heads, size), CONTEXT))
    h, tokens = randn(3, 10, width).requires_grad_(), randn(rows, 7, CONTEXT, seed=6).requires_grad_()
    w = dict(layer.named_parameters())
    found, expected = layer(h, layer.keys_values(tokens)), plain_sea(w, h, tokens.expand(3, -1, -1), heads)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    inputs = [h, tokens, *w.values()]
    for a, b in zip(gradients(found, inputs), gradients(expected, inputs)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


# --- in a U-Net ------------------------------------------------------------------------------------------------------

PICTURE = {"x": randn(2, 4, 8, 8), "t": torch.tensor([30, 700]), "context": randn(2, 9, CONTEXT, seed=8)}


class WrittenOut(nn.Module):
    """A transformer block of the mini base with Eq. 1 written between its attentions."""

    def __init__(self, block: Any, sea: SubjectEncoderAttention, tokens: Tensor, beta: Tensor) -> None:
        super().__init__()
        self.block, self.sea, self.tokens, self.beta = block, sea, tokens, beta

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        b, normed = self.block, self.block.norm1(x)
        h = x + b.attn1(normed, normed)
        h = h + self.beta * plain_sea(dict(self.sea.named_parameters()), h, self.tokens, self.sea.heads)
        h = h + b.attn2(b.norm2(h), context)
        return h + b.ff(b.norm3(h))


def written_out(one: SubjectEncoder, tokens: Tensor, beta: Tensor) -> Tensor:
    net = unet()
    layers = one.layers()
    names = iter(transformer_blocks(net))
    for part in (*net.input_blocks, net.middle_block, *net.output_blocks):
        for module in part:
            if hasattr(module, "transformer_blocks"):
                [block] = module.transformer_blocks
                module.transformer_blocks = nn.ModuleList([WrittenOut(block, layers[next(names)], tokens, beta)])
    return net(**PICTURE)


@pytest.mark.parametrize("beta", [1.0, 0.2, torch.tensor([1.0, 0.0], dtype=torch.float64)], ids=["1", "0.2", "rows"])
def test_inserted_a_unet_computes_eq_1(beta: float | Tensor) -> None:
    one, net, tokens = encoder(), unet(), randn(2, 16, CONTEXT, seed=9).requires_grad_()
    with inserted(one, transformer_blocks(net), tokens, beta):
        found = net(**PICTURE)
    expected = written_out(one, tokens, torch.as_tensor(beta, dtype=torch.float64).reshape(-1, 1, 1))
    assert not torch.allclose(found, unet()(**PICTURE), rtol=1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    inputs = [tokens, *(p for layer in one.layers().values() for p in layer.parameters())]
    for a, b in zip(gradients(found, inputs), gradients(expected, inputs)):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_at_the_start_the_unet_is_what_it_was() -> None:
    one, net = encoder(seed=None), unet()
    before = net(**PICTURE)
    with inserted(one, transformer_blocks(net), one.tokens(randn(2, 3, 16, 24))):
        after = net(**PICTURE)
    assert torch.equal(after, before)
    starts = torch.autograd.grad(after.sum(), [layer.to_out.weight for layer in one.layers().values()])
    assert all(gradient.abs().max() > 0 for gradient in starts)  # and it can learn from there


def test_a_row_of_beta_0_is_a_row_without_a_subject() -> None:
    one, net = encoder(), unet()
    before = net(**PICTURE)
    with inserted(one, transformer_blocks(net), randn(2, 16, CONTEXT), torch.tensor([0.0, 1.0], dtype=torch.float64)):
        after = net(**PICTURE)
    assert torch.equal(after[0], before[0])
    assert not torch.allclose(after[1], before[1])


def test_nothing_stays_inserted() -> None:
    one, net = encoder(), unet()
    before, blocks = net(**PICTURE), transformer_blocks(net)
    with pytest.raises(RuntimeError), inserted(one, blocks, randn(2, 16, CONTEXT)):
        net(**PICTURE | {"context": randn(2, 9, CONTEXT + 1)})
    assert torch.equal(net(**PICTURE), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    found = []
    for again in (False, True):
        one, net = encoder(), unet()
        for block in transformer_blocks(net).values() if again else ():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        with inserted(one, transformer_blocks(net), one.tokens(randn(2, 3, 16, 24))):
            net(**PICTURE).square().sum().backward()
        found.append([p.grad for p in one.learned()])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_what_is_learned_is_all_but_the_tower() -> None:
    one = encoder()
    assert one.tower is not None
    learned = {id(p) for p in one.learned()}
    assert learned.isdisjoint(id(p) for p in one.tower.parameters())
    assert len(learned) + len(list(one.tower.parameters())) == len(list(one.parameters()))


# --- the tower -------------------------------------------------------------------------------------------------------


def test_the_tower_gives_the_states_after_each_layer() -> None:
    tower, pictures = seeded(ImageTower(TOWER)), randn(2, 3, 32, 32).sigmoid()
    states = tower.hidden_states(pictures, (4, 0, 2))
    assert states.shape == (2, 3, TOWER.tokens, TOWER.width)
    h, after = tower.embed(pictures), []
    for layer in tower.layers:
        h = layer(h)
        after.append(h)
    assert torch.equal(states, torch.stack([after[3], tower.embed(pictures), after[1]], dim=1))
    assert torch.equal(tower(pictures), tower.norm(after[-1]).mean(dim=1))


def test_the_papers_layers_at_any_depth() -> None:
    assert default_layers(32) == (25, 4, 8, 12, 16)
    assert default_layers(24) == (19, 3, 6, 9, 12)
    for depth in range(1, 64):
        layers = default_layers(depth)
        assert len(set(layers)) == len(layers)
        assert all(1 <= layer <= depth for layer in layers)


# --- configurations --------------------------------------------------------------------------------------------------

GOOD = EncoderConfig("sd1", 768, 1280, 32, 257, default_layers(32), {"middle_0_0": AttentionShape(1280, 8, 160)})
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no family": ({"family": ""}, "family must be a short name"),
    "a sentence for a family": ({"family": "sd1\nsd2"}, "family must be a short name"),
    "no width": ({"context_width": 0}, "context_width must be a whole number of 1..8192, but is 0"),
    "a huge width": ({"tower_width": 10**9}, "tower_width must be a whole number of 1..8192"),
    "half a token": ({"tokens": 2.5}, "tokens must be a whole number"),
    "a word": ({"tower_layers": "many"}, "tower_layers must be a whole number"),
    "true": ({"res_blocks": True}, "res_blocks must be a whole number"),
    "no layers": ({"layers": ()}, r"layers must be different ones of 0..32"),
    "a layer beyond": ({"layers": (33,)}, r"layers must be different ones of 0..32"),
    "a layer twice": ({"layers": (3, 3)}, r"layers must be different ones of 0..32"),
    "no blocks": ({"blocks": {}}, "1..512 transformer blocks, but there are 0"),
    "a strange block": ({"blocks": {"x.y": AttentionShape(8, 1, 8)}}, "named like input_4_0, but one is named 'x.y'"),
    "a huge block": ({"blocks": {"middle_0_0": AttentionShape(8, 10**6, 8)}}, "middle_0_0's heads must be"),
    "another tower": ({"tower": TOWER}, r"carried tower has width, layers and tokens \(24, 4, 16\)"),
}


@pytest.mark.parametrize(("changes", "sentence"), BAD.values(), ids=BAD.keys())
def test_a_configuration_validates_itself(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(GOOD, **changes)


@pytest.mark.parametrize("bad", [{"side": 33}, {"patch": 6}, {"patch": 1}, {"width": 10**6}, {"heads": 5}])
def test_a_towers_configuration_validates_itself(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="the tower's"):
        replace(TOWER, **bad)


@pytest.mark.parametrize("config", [GOOD, encoder().config], ids=["host's tower", "own tower"])
def test_a_configuration_comes_back_from_plain_values(config: EncoderConfig) -> None:
    assert EncoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("change", [{"more": 1}, {"blocks": [1]}, {"layers": None}, {"tower": {"x": 1}}])
def test_values_of_another_kind_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="configuration"):
        EncoderConfig.from_dict(GOOD.to_dict() | change)


# --- files -----------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_what_is_read(tmp_path: Path) -> None:
    one, origin = encoder(), Origin({"steps": 3, "data": "drawings"}, "CC0")
    save(tmp_path / "e.safetensors", one, origin)
    found, from_where = read(tmp_path / "e.safetensors")
    assert from_where == origin
    assert found.config == one.config
    expected = one.state_dict()
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["e.safetensors"]


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dreamtuner_core.encoder.file as module

    path = tmp_path / "e.safetensors"
    save(path, encoder())
    before = path.read_bytes()

    def full(weights: Any, target: Path, metadata: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(path, encoder(seed=3))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["e.safetensors"]


def test_weights_that_were_read_can_be_trained(tmp_path: Path) -> None:
    save(tmp_path / "e.safetensors", encoder())
    one, _ = read(tmp_path / "e.safetensors")
    assert isinstance(one, SubjectEncoder)
    one.requires_grad_(True)
    one.tokens(randn(1, 3, 16, 24)).sum().backward()
    assert one.res_blocks[0].get_parameter("fc1.weight").grad is not None
