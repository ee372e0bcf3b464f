"""Attention of sparse training windows, as the additive masks that transformers' attention functions take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longrope.errors import LongRopeError

BIASED_ATTENTION = ("sdpa", "eager")  # transformers' kernels that add a mask of floats to the scores
FULL, SLIDING = "full_attention", "sliding_attention"


def sparse_masks(
    model: PreTrainedModel, positions: Tensor, chunk_ids: Tensor, key_bias: Tensor
) -> Tensor | dict[str, Tensor]:
    """Return the masks of a batch of sparse windows: causal, plus the bias of keys in other chunks than the query's.

    Args:
        model: Model whose layers take the masks.
        positions: Positions, ``(rows, tokens)``.
        chunk_ids: Number of each token's chunk, ``(rows, tokens)``.
        key_bias: Logits to add to the score of each key that is seen from another chunk, ``(rows, tokens)``.

    Returns:
        One mask ``(rows, 1, tokens, tokens)``, or one for each type of layers. Sliding windows count positions.
    """
    config: Any = model.config.get_text_config()
    distance = positions[:, :, None] - positions[:, None, :]
    other = chunk_ids[:, :, None] != chunk_ids[:, None, :]
    lowest = torch.finfo(model.dtype).min
    bias = torch.where(other, key_bias[:, None, :], 0.0).to(model.dtype)
    full = bias.masked_fill(distance < 0, lowest)[:, None]
    window = getattr(config, "sliding_window", None)
    if not window:
        return full
    sliding = full.masked_fill((distance >= window)[:, None], lowest)
    types = getattr(config, "layer_types", None) or [SLIDING]
    masks = {FULL: full, SLIDING: sliding}
    return masks if len(set(types)) > 1 else masks[types[0]]


def why_not_sparse(config: Any) -> str | None:
    """Return why the attention of a model cannot weigh keys, and the remedy; None if it can.

    Args:
        config: The model's config.
    """
    config = config.get_text_config()
    attention = config._attn_implementation or BIASED_ATTENTION[0]
    if attention not in BIASED_ATTENTION:
        kernels = " or ".join(BIASED_ATTENTION)
        return f"attention {attention!r} takes no weights of keys. Load the model with attention {kernels}."
    others = set(getattr(config, "layer_types", None) or ()) - {FULL, SLIDING}
    if others:
        names = ", ".join(sorted(others))
        return f"layers of the type {names} need every token in between. Leave windows and window out."
    return None


def check_sparse_windows(config: Any) -> None:
    """Raise a LongRopeError if the attention of a model cannot weigh keys (`why_not_sparse`)."""
    reason = why_not_sparse(config)
    if reason:
        raise LongRopeError(f'finetune.windows = "sparse": {reason}')
