"""Attention of sparse training windows, in which keys have weights: by more dimensions, or by additive masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from longrope.data.sparse_windows import MOST_CHUNKS
from longrope.errors import LongRopeError
from longrope.models.backbone import backbone_of
from longrope.models.patch import evaluating

BIASED_ATTENTION = ("sdpa", "eager")  # transformers' kernels that add a mask of floats to the scores
WEIGHTED = "longrope_weighted_sdpa"  # name of `_weighted_attention` in transformers
FULL, SLIDING = "full_attention", "sliding_attention"


def use_weighted_attention(model: PreTrainedModel) -> bool:
    """Let a model add the bias of keys by more dimensions of queries and keys, and return whether it can.

    A mask of floats makes torch's kernels compute all pairs of tokens; without one they compute the causal half. Models
    with sliding windows or another kernel than ``sdpa`` stay as they are, and so do those that do not get the same
    hidden states as with `sparse_masks`.
    """
    config: Any = model.config.get_text_config()
    if config._attn_implementation != "sdpa" or getattr(config, "sliding_window", None):
        return False
    AttentionInterface.register(WEIGHTED, _weighted_attention)
    AttentionMaskInterface.register(WEIGHTED, AttentionMaskInterface()["sdpa"])
    tokens = torch.arange(8, device=model.device)[None]
    positions, chunk_ids = tokens * (1 + 15 * (tokens > 3)), (tokens > 3).long()
    bias = torch.where(chunk_ids == 0, 2.0, 0.0)
    works = False
    try:
        with torch.no_grad(), evaluating(model):
            masks = sparse_masks(model, positions, chunk_ids, bias)
            named: dict[str, Any] = {"input_ids": tokens, "position_ids": positions, "use_cache": False}
            masked = backbone_of(model)(**named, attention_mask=masks)[0]
            works = _adds_bias(model, named, (positions, chunk_ids, bias), masked)
    finally:
        if not works:
            model.set_attn_implementation("sdpa")
    return works


def _adds_bias(
    model: PreTrainedModel, named: dict[str, Any], window: tuple[Tensor, Tensor, Tensor], masked: Tensor
) -> bool:
    """Give a model the weighted attention, and return whether its hidden states are those of the masks.

    Args:
        model: A causal language model.
        named: Inputs of its backbone.
        window: Positions, chunk ids and biases of the tokens.
        masked: Hidden states of the masks.
    """
    model.set_attn_implementation(WEIGHTED)
    try:
        weighted = backbone_of(model)(**named, **sparse_inputs(model, *window))[0]
    except Exception as error:  # each layer of an unknown kind fails in its own way
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False
    error = (weighted - masked).abs().max() / masked.abs().max()
    return bool(error <= (1e-4 if masked.dtype == torch.float32 else 5e-2))  # False for NaN


def sparse_inputs(model: PreTrainedModel, positions: Tensor, chunk_ids: Tensor, key_bias: Tensor) -> dict[str, Any]:
    """Return what a model's backbone takes besides tokens and positions for a batch of sparse windows.

    It is the masks of `sparse_masks`, whose arguments these are, or after `use_weighted_attention` the arguments
    themselves. Without the mask of ones, transformers takes jumps of positions for borders of documents.
    """
    if model.config._attn_implementation != WEIGHTED:
        return {"attention_mask": sparse_masks(model, positions, chunk_ids, key_bias)}
    return {"attention_mask": torch.ones_like(positions), "sparse_chunk_ids": chunk_ids, "sparse_key_bias": key_bias}


def _weighted_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sparse_chunk_ids: Tensor | None = None,
    sparse_key_bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention in which a key seen from another chunk has a bias, for transformers; without chunks plain ``sdpa``.

    Each query gets a 1 for every chunk but its own, and each key its bias in the place of its chunk.
    """
    sdpa: Any = AttentionInterface()["sdpa"]
    if sparse_chunk_ids is None or sparse_key_bias is None:
        return sdpa(module, query, key, value, attention_mask, scaling=scaling, **options)
    dim = query.shape[-1]
    scale = dim**-0.5 if scaling is None else scaling
    chunks = one_hot(sparse_chunk_ids, MOST_CHUNKS)[:, None].to(query.dtype)
    biases = chunks * (sparse_key_bias / scale)[:, None, :, None].to(query.dtype)
    query = torch.cat([query, (1 - chunks).expand(-1, query.shape[1], -1, -1)], dim=-1)
    key = torch.cat([key, biases.expand(-1, key.shape[1], -1, -1)], dim=-1)
    output, _ = sdpa(module, query, key, pad(value, (0, MOST_CHUNKS)), attention_mask, scaling=scale, **options)
    return output[..., : value.shape[-1]], None


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
