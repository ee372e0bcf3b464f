"""Fused attention over keys in blocks: each block tells its log-sum-exp, by which they are joined."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

KEYS = 2**16  # of a block on an accelerator: cuDNN compiles a kernel for each number of keys
aten = torch.ops.aten


def joinable(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Is PyTorch's choice a kernel that `in_blocks` can use? On CUDA cuDNN's, the fastest on Hopper and later."""
    if query.device.type == "cpu":
        return True
    return query.is_cuda and preferred(query, key, value) == SDPBackend.CUDNN_ATTENTION


def preferred(query: Tensor, key: Tensor, value: Tensor) -> SDPBackend:
    """What PyTorch would take, if heads may share keys."""
    return SDPBackend(torch._fused_sdp_choice(query, key, value, None, 0.0, False, enable_gqa=True))  # pyright: ignore


def in_blocks(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Causal attention of the last tokens: to those before, all visible, block by block, and to the own ones.

    Neither PyTorch's flash attention for CPUs nor cuDNN's has a causal form for fewer queries than keys. Backwards each
    block gets the joint output and log-sum-exp: with these its gradients are its share of the whole (as in ring
    attention).
    """
    return _Blocks.apply(query, key, value, scaling)  # pyright: ignore[reportReturnType]


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        ctx.parts = _parts(query, key)
        out, norm = _run(query, key, value, *ctx.parts[0], scaling)
        if len(ctx.parts) > 1:
            out = out.to(norm)
        for part, causal in ctx.parts[1:]:
            near, near_norm = _run(query, key, value, part, causal, scaling)
            out = torch.lerp(out, near.to(norm), torch.sigmoid(near_norm - norm)[..., None])
            norm = torch.logaddexp(norm, near_norm)
        ctx.scaling, out = scaling, out.to(query)
        ctx.save_for_backward(query, key, value, out, norm)
        return out

    @staticmethod
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        query, key, value, out, norm = ctx.saved_tensors
        by_query, by_key, by_value = torch.zeros_like(query, dtype=norm.dtype), [], []
        for part, causal in ctx.parts:
            by = _run_back(by_out, query, key[:, :, part], value[:, :, part], out, norm, causal, ctx.scaling)
            by_query += by[0]
            by_key.append(by[1])
            by_value.append(by[2])
        return by_query.to(query), torch.cat(by_key, dim=2), torch.cat(by_value, dim=2), None


def _parts(query: Tensor, key: Tensor) -> list[tuple[slice, bool]]:
    before = key.shape[2] - query.shape[2]
    size = KEYS if query.is_cuda else max(1, before)
    parts = [(slice(start, min(start + size, before)), False) for start in range(0, before, size)]
    return [*parts, (slice(before, key.shape[2]), True)]


def _run(query: Tensor, key: Tensor, value: Tensor, part: slice, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp ``(batch, heads, tokens)`` of attention to a part of the keys."""
    key, value = key[:, :, part], value[:, :, part]
    if not query.is_cuda:
        return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, is_causal=causal, scale=scale)
    out, norm, *_ = aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, is_causal=causal, scale=scale
    )
    return out, norm.view(query.shape[:3])


def _run_back(
    by_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, norm: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    given = (by_out, query, key, value, out)
    if not query.is_cuda:
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(*given, norm, 0.0, causal, scale=scale)
    seed = torch.zeros(1, dtype=torch.int64, device=query.device)  # of dropout, which there is none
    sizes = (None, None, None, query.shape[2], key.shape[2])
    return aten._scaled_dot_product_cudnn_attention_backward(
        *given, norm[..., None], seed, seed, *sizes, 0.0, causal, scale=scale
    )
