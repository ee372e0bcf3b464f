"""Attention of a few tokens to a long cache, without a copy of the keys that heads share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Tokens of a pass. With more of them the copy costs little beside the scores: SmolLM2's prefill of 4,096 tokens in
# chunks of 1,024 was not faster, and its hidden states were the same bits.
FEW = 128
UNGROUPED = nn.Identity()  # in place of an attention layer whose heads share keys


@contextmanager
def grouped_attention(device: torch.device) -> Iterator[None]:
    """Let models with transformers' ``sdpa`` on a CPU read shared keys in place, if they pass few tokens in the block.

    transformers does so for one token. For several, it copies all keys and values once for each head.
    """
    if device.type != "cpu" or ALL_ATTENTION_FUNCTIONS["sdpa"] is not sdpa_attention_forward:
        yield
        return
    AttentionInterface.register("sdpa", _attend)  # an item of ALL_ATTENTION_FUNCTIONS would hide later registrations
    try:
        yield
    finally:
        AttentionInterface.register("sdpa", sdpa_attention_forward)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Compute attention as ``sdpa``; the queries of heads that share a key are rows of one head."""
    rows, heads, tokens, _ = query.shape
    groups = heads // key.shape[1]
    same_mask = attention_mask is not None and attention_mask.shape[1] == 1 and options.get("position_bias") is None
    if attention_mask is None or not same_mask or groups == 1 or not 1 < tokens <= FEW:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    query = query.reshape(rows, key.shape[1], groups * tokens, -1)
    mask = attention_mask.repeat(1, 1, groups, 1)
    output, _ = sdpa_attention_forward(UNGROUPED, query, key, value, mask, **options)
    return output.transpose(1, 2).reshape(rows, heads, tokens, -1).transpose(1, 2), None
