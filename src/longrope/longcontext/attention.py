"""Causal attention of the last tokens of a sequence to all of it, without a matrix of all scores in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention, softmax
from torch.utils.checkpoint import checkpoint

from longrope.longcontext.flash_blocks import attend_in_blocks, can_join_blocks, preferred_kernel

SCORES = 2**24  # scores of a block of rows, where they or a mask must be in memory
LEAST_ROWS = 128  # of a block, for its speed
GROUPED_KERNELS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION)  # they take heads that share keys


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    softmax_scale: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, None]:
    """Compute causal attention as transformers' ``AttentionInterface`` does, without dropout.

    Heads that share a key are computed together, so no key is copied, and in one call where the kernel can. Fused
    kernels keep no scores in memory. Soft caps, sliding windows, and devices without such kernels (mps) need up
    to twice `SCORES` scores or mask entries at a time.

    Args:
        module: The attention layer, for error messages.
        query: Queries of the last tokens, ``(batch, heads, tokens, head_dim)``.
        key: Keys of all tokens, ``(batch, key heads, all tokens, head_dim)``.
        value: Values of all tokens, ``(batch, key heads, all tokens, value_dim)``.
        attention_mask: Booleans ``(1, 1, tokens, all tokens)``, whether a token sees a key, each the keys up to itself;
            None where the queries are those of the last tokens.
        softmax_scale: Factor of the scores; 1/sqrt(head_dim) if None.
        sliding_window: Number of tokens that a token sees, including itself; all before it if None.
        softcap: The c of c·tanh(score/c); None caps nothing.

    Returns:
        The output ``(batch, tokens, heads, value_dim)``, and None for the attention weights.
    """
    scale = query.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    window = sliding_window if sliding_window and sliding_window < key.shape[2] else None
    plain = attention_mask is None and not window and not softcap
    if query.is_cuda and plain and preferred_kernel(query, key, value) in GROUPED_KERNELS:
        return _causal(query, key, value, scale).transpose(1, 2), None
    groups = zip(query.chunk(key.shape[1], dim=1), key.split(1, dim=1), value.split(1, dim=1), strict=True)
    if attention_mask is not None:
        assert attention_mask.dtype == torch.bool, f"{type(module).__name__}: its mask says more than what is seen"
        outputs = [_seen(q, k, v, attention_mask, scale, window, softcap) for q, k, v in groups]
        return torch.cat(outputs, dim=1).transpose(1, 2), None
    outputs = [
        _by_rows(q, _expanded(k, q), _expanded(v, q), scale, window, softcap)
        if window or softcap
        else _causal(q, _expanded(k, q), _expanded(v, q), scale)
        for q, k, v in groups
    ]
    return torch.cat(outputs, dim=1).transpose(1, 2), None


def _expanded(key: Tensor, query: Tensor) -> Tensor:
    return key.expand(-1, query.shape[1], -1, -1)


def _causal(query: Tensor, key: Tensor, value: Tensor, softmax_scale: float) -> Tensor:
    options = {"scale": softmax_scale, "enable_gqa": key.shape[1] < query.shape[1]}
    if key.shape[2] == query.shape[2]:
        return scaled_dot_product_attention(query, key, value, is_causal=True, **options)
    if can_join_blocks(query, key, value):
        return attend_in_blocks(query, key, value, softmax_scale)
    if not query.is_cuda:  # no kernel of theirs takes such a mask without writing it down
        return _by_rows(query, key, value, softmax_scale, None, None)
    bias = causal_lower_right(query.shape[2], key.shape[2])
    return scaled_dot_product_attention(query, key, value, attn_mask=bias, **options)


def _by_rows(
    query: Tensor, key: Tensor, value: Tensor, softmax_scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Compute attention for blocks of rows, each with its mask; the backward pass recomputes the scores."""
    first = key.shape[2] - query.shape[2]
    seen = key.shape[2] if window is None else window
    rows = max(1, SCORES // (query.shape[:2].numel() * seen))
    if window is not None:  # a block sees as many keys more as it has rows
        rows = min(rows, max(window, LEAST_ROWS))
    outputs = []
    for start in range(0, query.shape[2], rows):
        end = min(start + rows, query.shape[2])
        begin = 0 if window is None else max(0, first + start - window + 1)
        keys = slice(begin, first + end)
        query_positions = torch.arange(first + start, first + end, device=query.device)[:, None]
        key_positions = torch.arange(begin, first + end, device=query.device)
        visible = key_positions <= query_positions
        if window is not None:
            visible = visible & (key_positions > query_positions - window)
        block = (query[:, :, start:end], key[:, :, keys], value[:, :, keys])
        if softcap is None:
            outputs.append(scaled_dot_product_attention(*block, attn_mask=visible, scale=softmax_scale))
        else:
            outputs.append(checkpoint(_capped, *block, visible, softmax_scale, softcap, use_reentrant=False))
    return torch.cat(outputs, dim=2)


def _seen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    softmax_scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Compute attention to the keys that each token sees, ``seen`` as the ``attention_mask`` of `attend`."""
    key, value = _expanded(key, query), _expanded(value, query)
    if window is not None:
        places = torch.arange(key.shape[2], device=key.device)
        seen = seen & (places > seen.sum(dim=-1, keepdim=True) - 1 - window)
    if softcap is not None:
        return _capped(query, key, value, seen, softmax_scale, softcap)
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=softmax_scale)


def _capped(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, softmax_scale: float, softcap: float) -> Tensor:
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * softmax_scale / softcap)
    return softmax(scores.masked_fill(~visible, -torch.inf), dim=-1, dtype=torch.float32).to(query.dtype) @ value
