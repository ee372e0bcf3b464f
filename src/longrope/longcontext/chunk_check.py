"""Check on the model itself whether its layers compute the same on chunks of the sequence as on all of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from longrope.models.backbone import backbone_of
from longrope.models.layer_windows import CHUNK, SLIDING, window_fields
from longrope.models.patch import evaluating
from longrope.models.rotary_embedding import LongRoPE

TOKENS, CHUNKS = 48, 6  # of the check's sequence
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}  # relative, by dtype
HALF_TOLERANCE = 0.1
OUTLIERS = 0.1  # share of tokens that may differ: rounding changes the experts of a token now and then
log = logging.getLogger("longrope")


@dataclass(frozen=True)
class _Check:
    """What two passes over a few tokens have shown.

    Args:
        difference: How a pass in chunks differs from a plain one; None if it does not.
        mask: Field of the config that limits what a token sees by a mask alone; empty without one.
    """

    difference: str | None
    mask: str


_checks: WeakKeyDictionary[nn.Module, dict[str, _Check]] = WeakKeyDictionary()  # by model and attention
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
    checks = _checks.setdefault(model, {})
    key = str(config._attn_implementation)
    if key not in checks:
        checks[key] = _check(model, tiled)
    check = checks[key]
    mask_size = getattr(config, check.mask, None) if check.mask else None
    reason = check.difference
    if mask_size and (length is None or length > mask_size):
        reason = f"{check.mask} = {mask_size} limits what a token sees by a mask"
    if reason and is_long and model not in _logged:
        _logged.add(model)
        log.warning(
            "Note: model type %r runs whole layers instead of chunks (%s), so memory grows faster with the length.",
            model.config.model_type,
            reason,
        )
    return reason


@torch.no_grad()
def _check(model: PreTrainedModel, tiled: Callable[[int], AbstractContextManager[None]]) -> _Check:
    """Compare a pass in chunks with a plain one on the same few tokens."""
    config = model.config.get_text_config()
    limits = window_fields(config)
    mask = CHUNK if CHUNK in limits else ""
    tokens = (torch.arange(1, TOKENS + 1, device=model.device) * 7919 % config.vocab_size).expand(_rows(model), -1)
    with evaluating(model):
        plain = _hidden(model, tokens)
        try:
            with tiled(TOKENS // CHUNKS), _recorded_windows(model) as windows:
                chunked = _hidden(model, tokens)
        except Exception as error:  # each layer of an unknown kind fails in its own way
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return _Check(
                f"its layers need more than keys and values of the tokens before: {type(error).__name__}", mask
            )
    if windows == {None} and SLIDING in limits:
        mask = SLIDING
    exact = not getattr(model, "is_quantized", False)  # some kernels round by all tokens of a pass
    tolerance = TOLERANCES.get(model.dtype, HALF_TOLERANCE) if exact else HALF_TOLERANCE
    return _Check(_difference(plain, chunked.to(plain.device), tolerance), mask)


def _difference(plain: Tensor, chunked: Tensor, tolerance: float) -> str | None:
    """Return how hidden states of chunks differ from plain ones, each ``(tokens, hidden)``; None if they do not.

    Args:
        plain: Hidden states of a plain pass.
        chunked: Hidden states of a pass in chunks.
        tolerance: Largest relative difference of a token that counts as none.
    """
    errors = (chunked - plain).norm(dim=-1) / plain.norm(dim=-1).clamp_min(1e-6)
    equal = errors <= tolerance  # NaN differs, unless the plain pass has it too
    different = ~equal & plain.isfinite().all(dim=-1)
    if different.float().mean() > OUTLIERS:
        return f"on chunks its hidden states differ by {float(errors.max()):.2g}"
    return None


def _rows(model: PreTrainedModel) -> int:
    """Return the rows of a batch for which a model has factors: 1 for any number of rows."""
    return max((module.rows for module in model.modules() if isinstance(module, LongRoPE)), default=1)


@contextmanager
def _recorded_windows(model: PreTrainedModel) -> Iterator[set[int | None]]:
    """Yield the sliding windows that layers pass to a registered attention in this block.

    PhiMoE and Qwen2-MoE pass none: their window is in transformers' mask alone, which `attend` does without.
    """
    name = str(model.config.get_text_config()._attn_implementation)
    windows: set[int | None] = set()
    attention: Any = AttentionInterface().get(name)
    if attention is None:  # eager
        yield windows
        return

    def record(*inputs: Any, sliding_window: int | None = None, **options: Any) -> Any:
        windows.add(sliding_window)
        return attention(*inputs, sliding_window=sliding_window, **options)

    AttentionInterface.register(name, record)
    try:
        yield windows
    finally:
        AttentionInterface.register(name, attention)


def _hidden(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    output: Any = backbone_of(model)(input_ids=tokens, use_cache=False)
    return output.last_hidden_state[0].float()
