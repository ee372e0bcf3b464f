"""Check on the model itself whether its layers compute the same on chunks of the sequence as on all of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longrope.models.backbone import backbone_of
from longrope.models.patch import evaluating

TOKENS, CHUNKS = 48, 6  # of the check's sequence
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}  # relative, by dtype
HALF_TOLERANCE = 0.1
OUTLIERS = 0.1  # share of tokens that may differ: rounding changes the experts of a token now and then
log = logging.getLogger("longrope")
_reasons: WeakKeyDictionary[nn.Module, dict[str, str | None]] = WeakKeyDictionary()  # by model and attention
_logged: WeakSet[nn.Module] = WeakSet()


def reason_for_whole_layers(
    model: PreTrainedModel,
    tiled: Callable[[int], AbstractContextManager[None]],
    *,
    length: int | None = None,
    is_long: bool = True,
) -> str | None:
    """Return why a model's layers must run as transformers runs them; None if chunks give the same hidden states.

    The first call for a model runs two passes over a few tokens.

    Args:
        model: A causal language model.
        tiled: Function (chunk size in tokens) that returns a context in which the layers run on chunks.
        length: Length of the sequence in tokens; any length if None.
        is_long: Whether to log one line, as the pass would take less memory in chunks.
    """
    config = model.config.get_text_config()
    mask_size = getattr(config, "attention_chunk_size", None)
    if mask_size and (length is None or length > mask_size):
        reason = f"attention_chunk_size = {mask_size} limits what a token sees by a mask"
    else:
        reasons = _reasons.setdefault(model, {})
        key = str(config._attn_implementation)
        if key not in reasons:
            reasons[key] = _difference(model, tiled)
        reason = reasons[key]
    if reason and is_long and model not in _logged:
        _logged.add(model)
        log.warning(
            "Note: model type %r runs whole layers instead of chunks (%s), so memory grows faster with the length.",
            model.config.model_type,
            reason,
        )
    return reason


@torch.no_grad()
def _difference(model: PreTrainedModel, tiled: Callable[[int], AbstractContextManager[None]]) -> str | None:
    """Return how a pass in chunks differs from a plain one on the same few tokens; None if it does not."""
    vocabulary = model.config.get_text_config().vocab_size
    tokens = (torch.arange(1, TOKENS + 1, device=model.device) * 7919 % vocabulary)[None]
    with evaluating(model):
        plain = _hidden(model, tokens)
        try:
            with tiled(TOKENS // CHUNKS):
                chunked = _hidden(model, tokens)
        except Exception as error:  # each layer of an unknown kind fails in its own way
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return f"its layers need more than keys and values of the tokens before: {type(error).__name__}"
    sizes = plain.norm(dim=-1).clamp_min(1e-6)
    errors = (chunked.to(plain.device) - plain).norm(dim=-1) / sizes
    equal = errors <= TOLERANCES.get(model.dtype, HALF_TOLERANCE)  # NaN differs, unless the plain pass has it too
    different = ~equal & plain.isfinite().all(dim=-1)
    if different.float().mean() > OUTLIERS:
        return f"on chunks its hidden states differ by {float(errors.median()):.2g}"
    return None


def _hidden(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    output: Any = backbone_of(model)(input_ids=tokens, use_cache=False)
    return output.last_hidden_state[0].float()
