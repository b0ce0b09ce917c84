"""Eq. 3 on every attention function of the host: exact, by plain calls, and never with a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.ldm.modules.attention as host_attention
import pytest
import torch
from comfy import cli_args
from comfy.model_patcher import ModelPatcher
from dreamtuner_pack.dreamtuner_core.host import kernels
from families import SHAPES, text
from graph import attend, difference, empty_latent, hard_mask, sample, shared_model, subject
from sampling_cases import CASES, EVERYTHING, by_the_host, plainly, plainly_in_fp32
from torch import Tensor

Kernel = Callable[..., Tensor]
TEXTS = {77, 33}  # tokens of the picture's text and of the caption
HEAD_SIZES = {8, 16}  # of the tiny models, where nothing rides beside q and k


def attention_sage(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **more: Any) -> Tensor:
    """Stands for SageAttention and other kernels that quantise (the newest hosts' int8): ignores any mask and, where
    it is given references, rounds the keys very much.
    """
    if k.shape[1] not in TEXTS | {q.shape[1]} or q.shape[-1] // heads not in HEAD_SIZES:
        k = (k / k.abs().amax() * 4).round() * k.abs().amax() / 4
    return host_attention.attention_pytorch(q, k, v, heads, **more)


BACKENDS: dict[str, Kernel] = {
    "basic": host_attention.attention_basic,
    "split": host_attention.attention_split,
    "sub_quad": host_attention.attention_sub_quad,
    "pytorch": host_attention.attention_pytorch,
    "sage": attention_sage,
}
every_backend = pytest.mark.parametrize("kernel", BACKENDS.values(), ids=BACKENDS.keys())
HARD_CASES = ["hard mask", "soft region", EVERYTHING]


@pytest.fixture
def backend(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """That kernel is the host's; the value lists the mask of each call."""
    masks = []

    def spy(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **more: Any) -> Tensor:
        masks.append(mask)
        return kernel(q, k, v, heads, mask=mask, **more)

    spy.__name__ = kernel.__name__
    monkeypatch.setattr(host_attention, "optimized_attention", spy)
    return masks


@every_backend
@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("name", HARD_CASES)
def test_is_eq_3_without_a_mask(kernel: Kernel, backend: list[Tensor | None], family: str, name: str) -> None:
    pictures = by_the_host(CASES[name], family, torch.float32)
    assert difference(pictures, plainly_in_fp32(name, family)) < 1e-5
    assert len(backend) > 50
    assert all(mask is None for mask in backend)


@every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_to_the_rounding_of_the_type(kernel: Kernel, backend: list[Tensor | None], dtype: torch.dtype) -> None:
    case, exact = CASES[EVERYTHING], plainly_in_fp32(EVERYTHING, "sd1")
    rounding = difference(plainly(case, "sd1", dtype), exact)
    assert difference(by_the_host(case, "sd1", dtype), exact) < 1.6 * rounding


def test_the_rough_kernel_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an exact kernel's name, the rounding one above spoils Eq. 3: so the test with it can fail."""
    attention_sage.__name__, name = "attention_flash", attention_sage.__name__
    try:
        monkeypatch.setattr(host_attention, "optimized_attention", attention_sage)
        pictures = by_the_host(CASES["hard mask"], "sd1", torch.float32)
    finally:
        attention_sage.__name__ = name
    assert difference(pictures, plainly_in_fp32("hard mask", "sd1")) > 1e-3


@pytest.mark.skipif(not hasattr(host_attention, "wrap_attn"), reason="this host has no attention override")
def test_an_override_of_the_kernel_is_not_given_the_weight() -> None:
    """A pack may replace the kernel by option (SageAttention does): it serves all but Eq. 3's own call."""
    calls = []

    def override(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **more: Any) -> Tensor:
        calls.append((k.shape[1], q.shape[-1] // heads))
        return kernel(q, k, v, heads, *args, **more)

    model = shared_model("sd1")
    expected = sample(attend(model, subject()), text("sd1", 1), text("sd1", 2))
    overridden = model.clone()
    overridden.model_options["transformer_options"]["optimized_attention_override"] = override
    pictures = sample(attend(overridden, subject()), text("sd1", 1), text("sd1", 2), empty_latent())
    assert difference(pictures, expected) < 1e-5  # without an override Eq. 3 may take torch's kernel
    assert calls
    assert {size for _, size in calls} <= HEAD_SIZES


def count(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    """The rows of each call of that function, from now on."""
    rows, function = [], getattr(module, name)

    def counted(q: Tensor, *args: Any, **more: Any) -> Any:
        rows.append(len(q))
        return function(q, *args, **more)

    monkeypatch.setattr(module, name, counted)
    return rows


def quad_chosen(monkeypatch: pytest.MonkeyPatch, model: ModelPatcher) -> None:
    monkeypatch.setattr(cli_args.args, "use_quad_cross_attention", True)


def override_chosen(monkeypatch: pytest.MonkeyPatch, model: ModelPatcher) -> None:
    options = model.model_options["transformer_options"]
    options["optimized_attention_override"] = lambda kernel, *args, **more: kernel(*args, **more)


def host_replaced(monkeypatch: pytest.MonkeyPatch, model: ModelPatcher) -> None:
    sub_quad = host_attention.attention_sub_quad
    monkeypatch.setattr(host_attention, "optimized_attention", lambda *args, **more: sub_quad(*args, **more))


@pytest.mark.parametrize("choose", [None, quad_chosen, override_chosen, host_replaced])
def test_torchs_kernel_on_a_cpu_where_nobody_chose_one(
    choose: Callable[..., None] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's default there is sub-quadratic; an artist's or another pack's choice stands."""
    model = shared_model("sd1").clone()
    expected = sample(attend(model, subject(mask=hard_mask())), text("sd1", 1), text("sd1", 2))
    if choose is not None:
        choose(monkeypatch, model)
    calls = count(monkeypatch, kernels, "attention_with_bias")
    pictures = sample(attend(model, subject(mask=hard_mask())), text("sd1", 1), text("sd1", 2))
    assert bool(calls) == (choose is None)
    assert difference(pictures, expected) < 1e-5
    assert torch.equal(pictures, expected) == (choose is None)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_rows_that_differ_in_weight_alone_are_read_in_one_call(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = attend(shared_model("sd1"), subject(), negative_weight=share)
    calls = count(monkeypatch, kernels, "attention_with_bias")
    sample(model, text("sd1", 1), text("sd1", 2))
    assert set(calls) == {2}
