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


def check_sparse_windows(config: Any) -> None:
    """Refuse a model whose attention cannot weigh keys.

    Args:
        config: The model's config.

    Raises:
        LongRopeError: If its kernel takes no mask of floats, or some layers are not attention.
    """
    config = config.get_text_config()
    attention = config._attn_implementation or BIASED_ATTENTION[0]
    if attention not in BIASED_ATTENTION:
        raise LongRopeError(
            f'finetune.windows = "sparse": attention {attention!r} takes no weights of keys. '
            f"Load the model with attention {' or '.join(BIASED_ATTENTION)}."
        )
    others = set(getattr(config, "layer_types", None) or ()) - {FULL, SLIDING}
    if others:
        raise LongRopeError(
            f'finetune.windows = "sparse": layers of the type {", ".join(sorted(others))} need every token in between. '
            "Train on whole sequences: leave windows and window out."
        )
