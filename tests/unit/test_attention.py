"""Eq. 3 against a plain float64 writing of it: a softmax with a dense N x (K + M) log mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dreamtuner_core.attention import (
    ReferenceTokens,
    attention_with_bias,
    log_weight_bias,
    self_subject_attention,
    softmax_attention,
)

ROWS, TOKENS, REFERENCE_TOKENS = 3, 24, 17


def log_mask(references: Sequence[ReferenceTokens], rows: int, queries: int, own_keys: int) -> Tensor:
    """log m of Eq. 3, dense: [B, N, K + M] in float64."""
    m = [torch.ones(rows, queries, own_keys, dtype=torch.float64)]
    for r in references:
        region = torch.ones(queries) if r.region is None else r.region
        m.append(
            (region.double()[..., None] * r.weight.double().reshape(-1, 1, r.weight.shape[-1])).expand(
                rows, queries, -1
            )
        )
    return torch.cat(m, dim=-1).log()


def eq3(q: Tensor, k: Tensor, v: Tensor, references: Sequence[ReferenceTokens], heads: int) -> Tensor:
    """softmax( q [k, k_r]^T / sqrt(d) + log m ) [v, v_r], in float64."""
    mask = log_mask(references, q.shape[0], q.shape[1], k.shape[1])
    k = torch.cat([k, *(r.k.expand(len(q), -1, -1) for r in references)], dim=1)
    v = torch.cat([v, *(r.v.expand(len(q), -1, -1) for r in references)], dim=1)
    q, k, v = (x.double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask[:, None]
    return (logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def of_one_type(q: Tensor, k: Tensor, v: Tensor, references: Sequence[ReferenceTokens], heads: int) -> Tensor:
    """The same by torch's kernel and a dense mask, all of it in the type of q: what rounding alone may cost."""
    mask = log_mask(references, q.shape[0], q.shape[1], k.shape[1]).to(q.dtype)
    k = torch.cat([k, *(r.k.expand(len(q), -1, -1) for r in references)], dim=1)
    v = torch.cat([v, *(r.v.expand(len(q), -1, -1) for r in references)], dim=1)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None]).transpose(1, 2).flatten(2)


def layer(heads: int, head_size: int, tokens: int = TOKENS, keys: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, N, C], k, v [B, K, C] in float64."""
    draw = torch.Generator().manual_seed(heads * 1000 + head_size)
    sizes = [(ROWS, n, heads * head_size) for n in (tokens, keys, keys)]
    return tuple(torch.randn(size, generator=draw, dtype=torch.float64) for size in sizes)  # type: ignore[return-value]


def reference(
    channels: int, weight: float | Tensor, region: Tensor | None = None, tokens: int = REFERENCE_TOKENS, seed: int = 1
) -> ReferenceTokens:
    draw = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, 1, tokens, channels, generator=draw, dtype=torch.float64)
    return ReferenceTokens(k, v, _each(weight, tokens), region)


def _each(weight: float | Tensor, tokens: int) -> Tensor:
    weight = torch.as_tensor(weight, dtype=torch.float64)
    return weight if weight.ndim == 2 else weight.expand(tokens)


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SOFT_MASK = 3.0 * uniform(REFERENCE_TOKENS, seed=2).clamp(min=1e-3)
HARD_REGION = (torch.arange(TOKENS) % 3 > 0).double()
SOFT_REGION = uniform(TOKENS, seed=3) * HARD_REGION
ROW_REGIONS = uniform(ROWS, TOKENS, seed=4) * (uniform(ROWS, TOKENS, seed=5) > 0.4)

ROW_WEIGHTS = uniform(ROWS, 1, seed=12) * SOFT_MASK

CASES: dict[str, Callable[[int], list[ReferenceTokens]]] = {
    "hard mask": lambda c: [reference(c, 3.0)],
    "soft mask": lambda c: [reference(c, SOFT_MASK)],
    "one token": lambda c: [reference(c, 3.0, tokens=1)],
    "hard region": lambda c: [reference(c, 3.0, HARD_REGION)],
    "soft region": lambda c: [reference(c, SOFT_MASK, SOFT_REGION)],
    "region of each row": lambda c: [reference(c, SOFT_MASK, ROW_REGIONS)],
    "weight of each row": lambda c: [reference(c, ROW_WEIGHTS), reference(c, 2.5, tokens=5, seed=6)],
    "weight and region of each row": lambda c: [reference(c, ROW_WEIGHTS, ROW_REGIONS)],
    "region nowhere": lambda c: [reference(c, 3.0, torch.zeros(TOKENS))],
    "two subjects": lambda c: [reference(c, 3.0), reference(c, 2.5, tokens=5, seed=6)],
    "three subjects, regions mixed": lambda c: [
        reference(c, 1.0, HARD_REGION),
        reference(c, SOFT_MASK, seed=7),
        reference(c, 2.0, ROW_REGIONS, tokens=9, seed=8),
    ],
    "hardly a weight": lambda c: [reference(c, 1e-3)],
    "a tiny mask": lambda c: [reference(c, 1e-30)],
    "far too much weight": lambda c: [reference(c, 30.0)],
}
HEADS = [(8, 40), (5, 64), (8, 80), (8, 8), (2, 7), (1, 160)]

every_case = pytest.mark.parametrize("references", CASES.values(), ids=CASES.keys())


@every_case
@pytest.mark.parametrize(("heads", "head_size"), HEADS)
def test_is_eq_3(references: Callable, heads: int, head_size: int) -> None:
    q, k, v = layer(heads, head_size)
    subjects = references(heads * head_size)
    expected = eq3(q, k, v, subjects, heads)
    assert (self_subject_attention(q, k, v, subjects, heads) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("queries", [7, 40])
def test_is_eq_3_where_queries_are_merged_and_keys_are_not(queries: int) -> None:
    q, k, v = layer(4, 16, tokens=queries)
    subjects = [reference(64, SOFT_MASK, uniform(queries, seed=9)), reference(64, 2.0, seed=10)]
    assert (self_subject_attention(q, k, v, subjects, 4) - eq3(q, k, v, subjects, 4)).abs().max() < 1e-10


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("heads", "head_size"), [(8, 40), (5, 64)])
def test_is_eq_3_to_the_rounding_of_the_type(
    references: Callable, heads: int, head_size: int, dtype: torch.dtype
) -> None:
    q, k, v = (x.to(dtype) for x in layer(heads, head_size))
    subjects = [replace(r, k=r.k.to(dtype), v=r.v.to(dtype)) for r in references(heads * head_size)]
    expected = eq3(q, k, v, subjects, heads)
    rounding = (of_one_type(q, k, v, subjects, heads).double() - expected).abs()
    error = (self_subject_attention(q, k, v, subjects, heads).double() - expected).abs()
    assert error.mean() < 1.5 * rounding.mean()
    assert error.max() < 2.5 * rounding.max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weight", [1e-3, 0.003, 0.1, 0.7, 1.0, 2.5, 3.0, 7.0, 10.0, 20.0, 30.0])
def test_the_weight_itself_is_hardly_rounded(weight: float, dtype: torch.dtype) -> None:
    """With q zero and v_r one, what comes out is the reference's share: w M / (K + w M)."""
    q, k, v = (torch.zeros(1, TOKENS, 40, dtype=dtype) for _ in range(3))
    r = ReferenceTokens(torch.zeros(1, 6, 40, dtype=dtype), torch.ones(1, 6, 40, dtype=dtype), torch.full((6,), weight))
    share = weight * 6 / (TOKENS + weight * 6)
    seen = self_subject_attention(q, k, v, [r], heads=1)
    torch.testing.assert_close(
        seen.double(), torch.full_like(seen, share).double(), rtol=max(2 * eps(dtype), 1e-6), atol=0
    )


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


@every_case
def test_own_attention_may_be_computed_elsewhere(references: Callable) -> None:
    """Where another patch gives the picture's own attention, and it is that of q, k, v, the whole is still Eq. 3."""
    q, k, v = layer(8, 40)
    subjects = references(320)
    own = softmax_attention(q, k, v, 8)
    expected = eq3(q, k, v, subjects, 8)
    assert (self_subject_attention(q, k, v, subjects, 8, own=own) - expected).abs().max() < 1e-10


@every_case
def test_own_attention_of_any_kind_keeps_its_share_of_the_softmax(references: Callable) -> None:
    q, k, v = layer(8, 40)
    subjects, own = references(320), torch.randn_like(q)
    read = eq3(q, k, torch.zeros_like(v), subjects, 8)
    ones = [replace(r, v=torch.ones_like(r.v)) for r in subjects]
    share = eq3(q, k, torch.zeros_like(v), ones, 8)
    expected = read + own * (1 - share)
    assert (self_subject_attention(q, k, v, subjects, 8, own=own) - expected).abs().max() < 1e-10


def by_bias(q: Tensor, k: Tensor, v: Tensor, references: Sequence[ReferenceTokens], heads: int) -> Tensor:
    return attention_with_bias(q, k, v, references, heads, log_weight_bias(q, k.shape[1], references))


WITHOUT_REGIONS = [name for name, case in CASES.items() if all(r.region is None for r in case(8))]


@pytest.mark.parametrize("name", WITHOUT_REGIONS)
@pytest.mark.parametrize(("heads", "head_size"), HEADS)
def test_with_a_bias_is_eq_3(name: str, heads: int, head_size: int) -> None:
    q, k, v = layer(heads, head_size)
    subjects = CASES[name](heads * head_size)
    assert (by_bias(q, k, v, subjects, heads) - eq3(q, k, v, subjects, heads)).abs().max() < 1e-10


@pytest.mark.parametrize("name", WITHOUT_REGIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_with_a_bias_is_eq_3_to_the_rounding_of_the_type(name: str, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in layer(8, 40))
    subjects = [replace(r, k=r.k.to(dtype), v=r.v.to(dtype)) for r in CASES[name](320)]
    expected = eq3(q, k, v, subjects, 8)
    rounding = (of_one_type(q, k, v, subjects, 8).double() - expected).abs()
    error = (by_bias(q, k, v, subjects, 8).double() - expected).abs()
    assert error.mean() < 1.2 * rounding.mean()


@pytest.mark.parametrize("way", [self_subject_attention, by_bias])
def test_a_reference_without_tokens_is_no_reference(way: Callable[..., Tensor]) -> None:
    q, k, v = layer(8, 40)
    assert (way(q, k, v, [reference(320, 3.0, tokens=0)], 8) - softmax_attention(q, k, v, 8)).abs().max() < 1e-10


def test_a_bias_is_stored_once_for_all_queries() -> None:
    q, k, _ = layer(8, 40)
    assert log_weight_bias(q, k.shape[1], [reference(320, 3.0)]).shape == (1, 1, 1, TOKENS + REFERENCE_TOKENS)
    rows = log_weight_bias(q, k.shape[1], [reference(320, ROW_WEIGHTS)])
    assert rows.shape == (ROWS, 1, 1, TOKENS + REFERENCE_TOKENS)


def test_without_references_nothing_is_touched() -> None:
    q, k, v = layer(8, 40)
    own = torch.randn_like(q)
    assert torch.equal(self_subject_attention(q, k, v, [], 8), softmax_attention(q, k, v, 8))
    assert self_subject_attention(q, k, v, [], 8, own=own) is own


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("own", [False, True], ids=["", "own"])
def test_a_token_outside_the_region_sees_exactly_nothing(own: bool, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in layer(8, 40))
    patched = torch.randn_like(q) if own else None
    outside = HARD_REGION == 0

    def seen(seed: int) -> Tensor:
        r = reference(320, 30.0, HARD_REGION, seed=seed)
        r = replace(r, k=r.k.to(dtype) * 4, v=r.v.to(dtype) * 100)
        return self_subject_attention(q, k, v, [r], 8, own=patched)

    one, another = seen(11), seen(12)
    assert torch.equal(one[:, outside], another[:, outside])
    assert not torch.equal(one[:, ~outside], another[:, ~outside])
    plain = softmax_attention(q, k, v, 8) if patched is None else patched
    torch.testing.assert_close(one[:, outside], plain[:, outside], rtol=8 * eps(dtype), atol=8 * eps(dtype))


def subset(r: ReferenceTokens, which: Tensor) -> ReferenceTokens:
    return replace(r, k=r.k[:, which], v=r.v[:, which], weight=r.weight[which])


def test_the_order_of_tokens_and_of_subjects_means_nothing() -> None:
    q, k, v = layer(8, 40)
    a, b = reference(320, SOFT_MASK, SOFT_REGION), reference(320, 2.5, tokens=5, seed=6)
    shuffled = subset(a, torch.randperm(REFERENCE_TOKENS, generator=torch.Generator().manual_seed(0)))
    expected = self_subject_attention(q, k, v, [a, b], 8)
    for subjects in ([shuffled, b], [b, a], [subset(a, torch.arange(9)), subset(a, torch.arange(9, 17)), b]):
        assert (self_subject_attention(q, k, v, subjects, 8) - expected).abs().max() < 1e-10


def test_a_subject_given_twice_is_one_of_twice_the_weight() -> None:
    q, k, v = layer(8, 40)
    r = reference(320, 1.5, SOFT_REGION)
    once = self_subject_attention(q, k, v, [replace(r, weight=2 * r.weight)], 8)
    assert (self_subject_attention(q, k, v, [r, r], 8) - once).abs().max() < 1e-10


def test_a_reference_equal_to_the_picture_changes_nothing() -> None:
    q, k, v = (x[:1] for x in layer(8, 40))
    r = ReferenceTokens(k, v, torch.full((TOKENS,), 3.0, dtype=torch.float64))
    assert (self_subject_attention(q, k, v, [r], 8) - softmax_attention(q, k, v, 8)).abs().max() < 1e-10


def test_one_plain_kernel_call_without_a_mask() -> None:
    """[B, N] queries against K + M keys, no mask: nothing of N x (K + M) entries ever goes in."""
    q, k, v = layer(8, 40)
    calls = []

    def spy(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        calls.append((q.shape, k.shape, v.shape, heads))
        return softmax_attention(q, k, v, heads)

    self_subject_attention(q, k, v, [reference(320, 3.0, ROW_REGIONS), reference(320, 1.0)], 8, spy)
    [(queries, keys, values, heads)] = calls
    assert keys == values == (ROWS, TOKENS + 2 * REFERENCE_TOKENS, queries[-1])
    assert heads == 8
    assert queries[:2] == (ROWS, TOKENS)
    assert queries[-1] % (8 * heads) == 0  # a head size that kernels like
