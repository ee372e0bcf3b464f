"""Causal attention of the last tokens of a sequence to all of it, in memory that does not grow with their product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention, softmax
from torch.utils.checkpoint import checkpoint

from longrope.longcontext.flash_blocks import in_blocks, joinable, preferred

SCORES = 2**24  # of a block of rows, where scores or a mask must be written down
SHARING = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION)  # kernels for heads that share keys


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as a function of transformers' ``AttentionInterface``; without dropout, and without a mask.

    Heads that share a key are taken together, so that no key is copied, all at once where the kernel can. Where a
    kernel keeps the scores to itself nothing is written down; soft caps and sliding windows take `SCORES` at a time.

    Args:
        module: whose attention it is.
        query: of the last tokens, ``(batch, heads, tokens, head_dim)``.
        key: of all tokens, ``(batch, key heads, all tokens, head_dim)``.
        value: as ``key``.
        attention_mask: must be None.
        scaling: of scores; 1/sqrt(head_dim) if None.
        sliding_window: how many tokens one sees, itself among them; all before it if None.
        softcap: c of c·tanh(score/c).
    """
    assert attention_mask is None, f"{type(module).__name__}: pieces of a sequence know no mask"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window and sliding_window < key.shape[2] else None
    if query.is_cuda and not window and not softcap and preferred(query, key, value) in SHARING:
        return _causal(query, key, value, scale).transpose(1, 2), None
    groups = zip(query.chunk(key.shape[1], dim=1), key.split(1, dim=1), value.split(1, dim=1), strict=True)
    found = [
        _by_rows(q, _shared(k, q), _shared(v, q), scale, window, softcap)
        if window or softcap
        else _causal(q, _shared(k, q), _shared(v, q), scale)
        for q, k, v in groups
    ]
    return torch.cat(found, dim=1).transpose(1, 2), None


def _shared(one: Tensor, query: Tensor) -> Tensor:
    return one.expand(-1, query.shape[1], -1, -1)


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    shared = {"scale": scaling, "enable_gqa": key.shape[1] < query.shape[1]}
    if key.shape[2] == query.shape[2]:
        return scaled_dot_product_attention(query, key, value, is_causal=True, **shared)
    if joinable(query, key, value):
        return in_blocks(query, key, value, scaling)
    bias = causal_lower_right(query.shape[2], key.shape[2])
    return scaled_dot_product_attention(query, key, value, attn_mask=bias, **shared)


def _by_rows(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None, softcap: float | None
) -> Tensor:
    """In blocks of rows, with a mask for each; backwards, scores are computed anew."""
    first, found = key.shape[2] - query.shape[2], []
    seen = key.shape[2] if window is None else window
    rows = max(1, SCORES // (query.shape[:2].numel() * seen))
    for start in range(0, query.shape[2], rows):
        end = min(start + rows, query.shape[2])
        begin = 0 if window is None else max(0, first + start - window + 1)
        part = slice(begin, first + end)
        at = torch.arange(first + start, first + end, device=query.device)[:, None]
        to = torch.arange(begin, first + end, device=query.device)
        visible = to <= at if window is None else (to <= at) & (to > at - window)
        given = (query[:, :, start:end], key[:, :, part], value[:, :, part])
        if softcap is None:
            found.append(scaled_dot_product_attention(*given, attn_mask=visible, scale=scaling))
        else:
            found.append(checkpoint(_capped, *given, visible, scaling, softcap, use_reentrant=False))
    return torch.cat(found, dim=2)


def _capped(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scaling: float, softcap: float) -> Tensor:
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scaling / softcap)
    return softmax(scores.masked_fill(~visible, -torch.inf), dim=-1, dtype=torch.float32).to(query.dtype) @ value
