"""IP-Adapter files by their public layout: known, refused, and computed as published, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from formulas import gradients, plain_attention, plain_norm, randn
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from dreamtuner_core.encoder.file import read
from dreamtuner_core.encoder.ip_adapter import IPAdapter, IPAdapterConfig, beside_text, is_ip_adapter, numbered
from dreamtuner_core.encoder.model import KeysValues

SD1 = [("input", i, 0) for i in (1, 2, 4, 5, 7, 8)] + [("middle", 0, 0)] + [("output", i, 0) for i in range(3, 12)]
SDXL = [
    *[("input", i, j) for i in (4, 5) for j in range(2)],
    *[("input", i, j) for i in (7, 8) for j in range(10)],
    *[("middle", 0, j) for j in range(10)],
    *[("output", i, j) for i in range(3) for j in range(10)],
    *[("output", i, j) for i in range(3, 6) for j in range(2)],
]


def pairs(context: int, blocks: int, width: int = 24) -> dict[str, tuple[int, ...]]:
    return {f"ip_adapter.{2 * i + 1}.{kind}.weight": (width, context) for i in range(blocks) for kind in KINDS}


KINDS = ("to_k_ip", "to_v_ip")


def plain_file(context: int = 768, embedding: int = 1024, blocks: int = 16, tokens: int = 4) -> dict[str, Any]:
    """Names and shapes of ip-adapter_sd15, but for the inner widths."""
    projection = {"proj.weight": (tokens * context, embedding), "proj.bias": (tokens * context,)}
    projection |= {"norm.weight": (context,), "norm.bias": (context,)}
    return {f"image_proj.{name}": shape for name, shape in projection.items()} | pairs(context, blocks)


def plus_file(
    context: int = 768, states: int = 80, blocks: int = 16, tokens: int = 16, width: int = 128, layers: int = 4
) -> dict[str, Any]:
    """Names and shapes of ip-adapter-plus_sd15, but for the widths."""
    projection: dict[str, tuple[int, ...]] = {"latents": (1, tokens, width), "proj_in.weight": (width, states)}
    projection |= {"proj_in.bias": (width,), "proj_out.weight": (context, width), "proj_out.bias": (context,)}
    projection |= {"norm_out.weight": (context,), "norm_out.bias": (context,)}
    for i in range(layers):
        projection |= {f"layers.{i}.0.{n}.{p}": (width,) for n in ("norm1", "norm2") for p in ("weight", "bias")}
        projection |= {f"layers.{i}.0.{n}.weight": (width, width) for n in ("to_q", "to_out")}
        projection |= {f"layers.{i}.0.to_kv.weight": (2 * width, width)}
        projection |= {f"layers.{i}.1.0.{p}": (width,) for p in ("weight", "bias")}
        projection |= {f"layers.{i}.1.1.weight": (4 * width, width), f"layers.{i}.1.3.weight": (width, 4 * width)}
    return {f"image_proj.{name}": shape for name, shape in projection.items()} | pairs(context, blocks)


def weights(shapes: dict[str, tuple[int, ...]], seed: int = 3) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}


def loaded(shapes: dict[str, tuple[int, ...]]) -> tuple[IPAdapter, dict[str, Tensor]]:
    w, model = weights(shapes), IPAdapter(IPAdapterConfig.from_shapes(shapes)).double()
    model.load_state_dict(w)
    return model, w


# --- as published ----------------------------------------------------------------------------------------------------


def plain_projection(w: dict[str, Tensor], embedding: Tensor, tokens: int) -> Tensor:
    flat = embedding @ w["image_proj.proj.weight"].T + w["image_proj.proj.bias"]
    parts = torch.stack(flat.chunk(tokens, dim=-1), dim=1)
    return plain_norm(parts, w["image_proj.norm.weight"], w["image_proj.norm.bias"])


def plain_resampler(w: dict[str, Tensor], states: Tensor, layers: int, heads: int) -> Tensor:
    x = states @ w["image_proj.proj_in.weight"].T + w["image_proj.proj_in.bias"]
    latents = w["image_proj.latents"].repeat(len(x), 1, 1)
    for i in range(layers):
        layer = {name.removeprefix(f"image_proj.layers.{i}."): value for name, value in w.items()}
        seen = plain_norm(x, layer["0.norm1.weight"], layer["0.norm1.bias"])
        own = plain_norm(latents, layer["0.norm2.weight"], layer["0.norm2.bias"])
        kv = torch.cat([seen, own], dim=1) @ layer["0.to_kv.weight"].T
        k, v = kv[..., : kv.shape[-1] // 2], kv[..., kv.shape[-1] // 2 :]
        latents = plain_attention(own @ layer["0.to_q.weight"].T, k, v, heads) @ layer["0.to_out.weight"].T + latents
        inner = plain_norm(latents, layer["1.0.weight"], layer["1.0.bias"]) @ layer["1.1.weight"].T
        latents = F.gelu(inner) @ layer["1.3.weight"].T + latents
    out = latents @ w["image_proj.proj_out.weight"].T + w["image_proj.proj_out.bias"]
    return plain_norm(out, w["image_proj.norm_out.weight"], w["image_proj.norm_out.bias"])


def check_tokens(model: IPAdapter, found: Tensor, expected: Tensor, w: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    own = {name: p for name, p in model.named_parameters() if name.startswith("image_proj")}
    for a, b in zip(gradients(found, list(own.values())), gradients(expected, [w[name] for name in own])):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_the_plain_kind_projects_the_embedding() -> None:
    model, w = loaded(plain_file(context=20, embedding=36, blocks=2))
    w = {name: value.requires_grad_() for name, value in w.items()}
    embedding = randn(2, 36)
    found = model.tokens(embedding)
    assert found.shape == (2, 4, 20)
    check_tokens(model, found, plain_projection(w, embedding, 4), w)


@pytest.mark.parametrize("width", [64, 128])
def test_the_plus_kind_resamples_the_hidden_states(width: int) -> None:
    model, w = loaded(plus_file(context=20, states=36, blocks=2, tokens=5, width=width, layers=3))
    w = {name: value.requires_grad_() for name, value in w.items()}
    states = randn(2, 11, 36)
    found = model.tokens(states)
    assert found.shape == (2, 5, 20)
    check_tokens(model, found, plain_resampler(w, states, 3, width // 64), w)


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_image_tokens_are_read_beside_the_text(heads: int) -> None:
    model, w = loaded(plain_file(context=20, embedding=36, blocks=2))
    q, text, tokens = randn(2, 9, 24).requires_grad_(), randn(2, 9, 24, seed=6), randn(1, 4, 20, seed=7)
    found = beside_text(text, q, model.pairs()[3].keys_values(tokens), heads, 0.7)
    k, v = (tokens.expand(2, -1, -1) @ w[f"ip_adapter.3.{kind}.weight"].T for kind in KINDS)
    expected = text + 0.7 * plain_attention(q, k, v, heads)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(gradients(out, [q])[0] for out in (found, expected)), rtol=1e-9, atol=1e-10)


def test_strength_0_is_the_text_alone() -> None:
    text = randn(1, 9, 24)
    image = KeysValues(randn(1, 4, 24, seed=1), randn(1, 4, 24, seed=2))
    assert torch.equal(beside_text(text, text, image, 3, 0.0), text)


# --- the layout ------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_public_files() -> None:
    """Input side, output side, then the middle, as every loader of these files has it."""
    sd1, sdxl = dict(numbered(SD1)), dict(numbered(SDXL))
    assert list(sd1) == list(range(1, 32, 2))
    assert list(sdxl) == list(range(1, 140, 2))
    assert (sd1[1], sd1[11], sd1[13], sd1[29], sd1[31]) == (SD1[0], SD1[5], SD1[7], SD1[15], ("middle", 0, 0))
    assert (sdxl[1], sdxl[9], sdxl[47]) == (("input", 4, 0), ("input", 7, 0), ("input", 8, 9))
    assert (sdxl[49], sdxl[119], sdxl[139]) == (("output", 0, 0), ("output", 5, 1), ("middle", 0, 9))


@pytest.mark.parametrize(
    ("shapes", "family", "tokens", "embedding"),
    [
        (plain_file(), "sd1", 4, 1024),
        (plain_file(2048, 1280, 70), "sdxl", 4, 1280),
        (plus_file(), "sd1", 16, 80),
        (plus_file(2048, 80, 70, width=192), "sdxl", 16, 80),
    ],
    ids=["plain, SD1.5", "plain, SDXL", "plus, SD1.5", "plus, SDXL"],
)
def test_a_file_is_known_by_its_layout(shapes: Any, family: str, tokens: int, embedding: int, tmp_path: Path) -> None:
    assert is_ip_adapter(shapes)
    kept = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}
    save_file(kept, tmp_path / "ip.safetensors")
    found, origin = read(tmp_path / "ip.safetensors")
    assert isinstance(found, IPAdapter)
    assert (found.config.family, found.config.tokens, found.config.embedding_width) == (family, tokens, embedding)
    assert len(found.config.pairs) == {"sd1": 16, "sdxl": 70}[family]
    assert found.state_dict().keys() == shapes.keys()
    assert origin.licence == ""


OTHERS = {
    "FaceID": {"image_proj.proj.0.weight": (8, 8), "ip_adapter.1.to_q_lora.down.weight": (4, 8)} | pairs(768, 2),
    "full face": {"image_proj.proj.0.weight": (8, 8), "image_proj.proj.3.weight": (8,)} | pairs(768, 2),
    "no pairs": {name: s for name, s in plain_file().items() if "ip_adapter" not in name},
    "no projection": pairs(768, 16),
}


@pytest.mark.parametrize("shapes", OTHERS.values(), ids=OTHERS.keys())
def test_another_kind_is_refused(shapes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="IP-Adapter of another kind"):
        IPAdapterConfig.from_shapes(shapes)


STRANGE = {
    "a flat latent": plus_file() | {"image_proj.latents": (16, 128)},
    "a pair of no width": plain_file() | {"ip_adapter.1.to_k_ip.weight": (0, 768)},
    "a huge projection": plain_file() | {"image_proj.proj.weight": (10**12, 1024)},
    "a projection of one rank": plain_file() | {"image_proj.proj.weight": (768,)},
}


@pytest.mark.parametrize("shapes", STRANGE.values(), ids=STRANGE.keys())
def test_strange_shapes_are_refused(shapes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="shapes that no such file has"):
        IPAdapterConfig.from_shapes(shapes)
