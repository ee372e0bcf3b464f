"""Fused attention over blocks of keys, whose outputs are joined by their log-sum-exps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import pad

KEYS = 2**16  # of a block on an accelerator: cuDNN compiles a kernel for each number of keys
aten = torch.ops.aten


def can_join_blocks(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Return whether PyTorch's kernel for these tensors gives a log-sum-exp; on CUDA only cuDNN's is used so."""
    if query.device.type == "cpu":
        return True
    return query.is_cuda and preferred_kernel(query, key, value) == SDPBackend.CUDNN_ATTENTION


def preferred_kernel(query: Tensor, key: Tensor, value: Tensor) -> SDPBackend:
    """Return the kernel that PyTorch chooses for these tensors, if heads may share keys."""
    return SDPBackend(torch._fused_sdp_choice(query, key, value, None, 0.0, False, enable_gqa=True))  # pyright: ignore


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, softmax_scale: float) -> Tensor:
    """Compute causal attention of the last tokens: block by block to the keys before them, then to their own.

    Neither PyTorch's flash attention for CPUs nor cuDNN's has a causal form for fewer queries than keys. In the
    backward pass each block gets the joint output and log-sum-exp, so its gradients are its share of all (as in ring
    attention). Where values have another size than keys, as in multi-head latent attention, zeros make them equal.
    """
    size = max(query.shape[-1], value.shape[-1])
    same = [pad(tensor, (0, size - tensor.shape[-1])) for tensor in (query, key, value)]
    output: Any = _Blocks.apply(*same, softmax_scale)
    return output[..., : value.shape[-1]]


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, softmax_scale: float) -> Tensor:
        ctx.blocks = _key_blocks(query, key)
        out, norm = _forward(query, key, value, *ctx.blocks[0], softmax_scale)
        if len(ctx.blocks) > 1:
            out = out.to(norm)
        for keys, causal in ctx.blocks[1:]:
            block_out, block_norm = _forward(query, key, value, keys, causal, softmax_scale)
            out = torch.lerp(out, block_out.to(norm), torch.sigmoid(block_norm - norm)[..., None])
            norm = torch.logaddexp(norm, block_norm)
        out = out.to(query)
        ctx.softmax_scale = softmax_scale
        ctx.save_for_backward(query, key, value, out, norm)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        query, key, value, out, norm = ctx.saved_tensors
        grad_query = torch.zeros_like(query, dtype=norm.dtype)
        grad_keys, grad_values = [], []
        for keys, causal in ctx.blocks:
            block = (query, key[:, :, keys], value[:, :, keys], out, norm)
            grads = _backward(grad_out, *block, causal, ctx.softmax_scale)
            grad_query += grads[0]
            grad_keys.append(grads[1])
            grad_values.append(grads[2])
        return grad_query.to(query), torch.cat(grad_keys, dim=2), torch.cat(grad_values, dim=2), None


def _key_blocks(query: Tensor, key: Tensor) -> list[tuple[slice, bool]]:
    """Return blocks of keys and whether each is causal: only the last one, of the queries' own tokens."""
    before = key.shape[2] - query.shape[2]
    size = KEYS if query.is_cuda else max(1, before)
    blocks = [(slice(start, min(start + size, before)), False) for start in range(0, before, size)]
    return [*blocks, (slice(before, key.shape[2]), True)]


def _forward(
    query: Tensor, key: Tensor, value: Tensor, keys: slice, causal: bool, softmax_scale: float
) -> tuple[Tensor, Tensor]:
    """Return the output and log-sum-exp ``(batch, heads, tokens)`` of attention to a block of keys."""
    key, value = key[:, :, keys], value[:, :, keys]
    if not query.is_cuda:
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, is_causal=causal, scale=softmax_scale
        )
    out, norm, *_ = aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, is_causal=causal, scale=softmax_scale
    )
    return out, norm.view(query.shape[:3])


def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    norm: Tensor,
    causal: bool,
    softmax_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (grad_out, query, key, value, out)
    if not query.is_cuda:
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *tensors, norm, 0.0, causal, scale=softmax_scale
        )
    seed = torch.zeros(1, dtype=torch.int64, device=query.device)  # of dropout, which is 0
    sizes = (None, None, None, query.shape[2], key.shape[2])
    return aten._scaled_dot_product_cudnn_attention_backward(
        *tensors, norm[..., None], seed, seed, *sizes, 0.0, causal, scale=softmax_scale
    )
