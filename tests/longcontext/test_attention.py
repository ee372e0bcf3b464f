"""Attention of the last tokens to all, against softmax written down in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from longrope.longcontext import attention
from longrope.longcontext.attention import attend


def drawn(heads: int, tokens: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, heads, tokens, 16, generator=generator, dtype=dtype).requires_grad_()


def written_down(q: Tensor, k: Tensor, v: Tensor, window: int | None, softcap: float | None) -> Tensor:
    groups, last, all_ = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    k, v = (one.repeat_interleave(groups, dim=1) for one in (k, v))
    scores = q @ k.transpose(2, 3) / 4
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(all_ - last, all_)[:, None] - torch.arange(all_)
    hidden = (distance < 0) | (distance >= (window or all_))
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize(("last", "all_"), [(40, 40), (10, 40), (1, 40), (33, 40)])
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (6, 2), (3, 1)])
def test_outputs_and_gradients(
    heads: int, shared: int, last: int, all_: int, window: int | None, softcap: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(attention, "SCORES", 12 * 40)  # several blocks of rows
    q, k, v = drawn(heads, last, 0), drawn(shared, all_, 1), drawn(shared, all_, 2)
    out, _ = attend(nn.Identity(), q, k, v, None, sliding_window=window, softcap=softcap)
    right = written_down(q, k, v, window, softcap)
    assert torch.allclose(out, right, atol=1e-6)
    by = torch.randn(right.shape, generator=torch.Generator().manual_seed(0), dtype=right.dtype)
    for found, wanted in zip(
        torch.autograd.grad(out, (q, k, v), by), torch.autograd.grad(right, (q, k, v), by), strict=True
    ):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_a_device_without_fused_kernels_keeps_few_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As mps, whose kernel writes all scores down."""
    q, k, v = drawn(4, 40, 0), drawn(2, 160, 1), drawn(2, 160, 2)
    fused, _ = attend(nn.Identity(), q, k, v, None)
    monkeypatch.setattr(attention, "SCORES", 12 * 160)
    monkeypatch.setattr(attention, "can_join_blocks", lambda *_: False)
    monkeypatch.setattr(attention, "causal_lower_right", None)
    out, _ = attend(nn.Identity(), q, k, v, None)
    assert torch.allclose(out, fused, atol=1e-6)


@pytest.mark.parametrize("window", [16, 100, 1000])
def test_a_window_bounds_the_mask(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not rows times rows, where a block of many rows sees a short window."""
    sizes: list[int] = []

    def record(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, **others: object) -> Tensor:
        sizes.append(attn_mask.numel() * query.shape[:2].numel())
        return scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **others)

    monkeypatch.setattr(attention, "SCORES", 2**18)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", record)
    q, k = drawn(2, 2048, 0), drawn(2, 2048, 1)
    attend(nn.Identity(), q, k, k, None, sliding_window=window)
    assert max(sizes) <= 2 * attention.SCORES
    assert sum(sizes) <= 2 * q.shape[:3].numel() * max(window, attention.LEAST_ROWS)


@pytest.mark.parametrize("size", [6, 24])
@pytest.mark.parametrize(("last", "all_"), [(40, 40), (10, 40)])
def test_values_may_have_another_size_than_keys(size: int, last: int, all_: int) -> None:
    q, k = drawn(4, last, 0), drawn(2, all_, 1)
    v = torch.randn(2, 2, all_, size, generator=torch.Generator().manual_seed(2), dtype=q.dtype).requires_grad_()
    out, right = attend(nn.Identity(), q, k, v)[0], written_down(q, k, v, None, None)
    assert torch.allclose(out, right, atol=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(out.square().sum(), (q, k, v)),
        torch.autograd.grad(right.square().sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_scale_of_its_own() -> None:
    q, k, v = drawn(2, 10, 0), drawn(2, 30, 1), drawn(2, 30, 2)
    assert torch.allclose(
        attend(nn.Identity(), q, k, v, softmax_scale=0.5)[0], attend(nn.Identity(), 2 * q, k, v, None)[0]
    )


@pytest.mark.parametrize("seed", range(5))
def test_bfloat16_is_rounded_once_more(seed: int) -> None:
    """Each part is, before they are joined: 1.3 times the error of one pass, by root mean square."""
    q, k, v = (drawn(2, 200, 3 * seed + i, torch.bfloat16) for i in range(3))
    exact = written_down(*(one.double() for one in (q[:, :, 150:], k, v)), None, None)
    parts = attend(nn.Identity(), q[:, :, 150:], k, v, None)[0]
    once = attend(nn.Identity(), q, k, v, None)[0][:, 150:]
    assert (parts - exact).square().mean().sqrt() <= 1.4 * (once - exact).square().mean().sqrt()
