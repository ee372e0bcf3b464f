"""Average the weights of two models of the same architecture."""

from __future__ import annotations

import re

import torch
from transformers import PreTrainedModel

from longrope.errors import LongRopeError

# projections and norms of queries and keys, of low rank too, and projections to queries, keys and values at once
QUERIES_AND_KEYS = re.compile(
    r"\b(q|k|qk|kv|qkv)(_a|_b|_gate)?_(proj|proj_with_mqa|norm|layernorm)\b|\b(query|key|k_rope_only)_layernorm\b"
    r"|\bquery_key_value\b|\bWqkv\b|\bwq_b\b|\bwk\b"
)


@torch.no_grad()
def mix_weights(model: PreTrainedModel, other: PreTrainedModel, share: float) -> PreTrainedModel:
    """Replace a model's weights by ``(1 - share)·its own + share·the other's``, in place, and return it.

    Between a fine-tuned model and its original, small shares keep most of both (WiSE-FT, arXiv 2109.01903). Queries and
    keys stay the model's own: far positions need them as they were trained (docs/results.md has the measurement).

    Raises:
        LongRopeError: If the models have different parameters.
    """
    others = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if name not in others or others[name].shape != parameter.shape:
            raise LongRopeError(f"average = {share}: the original model has no parameter {name} of the same shape")
        if not QUERIES_AND_KEYS.search(name):
            parameter.lerp_(others[name].to(parameter), share)
    return model
