"""Losses in overlapping windows of a text, and the tokens that only a long context tells."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.evaluation.perplexity import model_losses
from longrope.longcontext.token_losses import token_losses
from longrope.models.patch import patch
from longrope.scaling import Extension, Scaling

GAIN, CERTAIN = 2.0, 2.0  # nats; LongPPL's alpha and minus its beta (arXiv 2410.23771 section 3.2)


def sliding_losses(
    model: PreTrainedModel,
    factors: Scaling | Extension | None,
    tokens: np.ndarray,
    *,
    length: int,
    stride: int,
    batch: int = 1,
) -> np.ndarray:
    """The loss of every token of a text but the first, float32 ``(tokens - 1,)``, in windows that overlap.

    A window begins ``stride`` tokens after the one before it, and the last one ends with the text. In each, those
    tokens count that no earlier one has had, so that most have ``length - stride`` tokens or more before them.

    Args:
        model: a causal language model.
        factors: None is the model as it is.
        tokens: of one text, ``(tokens,)``.
        length: of a window in tokens.
        stride: in tokens.
        batch: windows in one forward pass.

    Raises:
        LongRopeError: if the text is shorter than a window, or the stride longer.
    """
    if not 1 <= stride < length <= len(tokens):
        raise LongRopeError(
            f"stride = {stride} with windows of {length} tokens over a text of {len(tokens)}: "
            "use a stride below the window, and windows of the text's length at most"
        )
    last = len(tokens) - length
    starts = [*range(0, last, stride), last]
    with patch(model, factors_at(factors, length)):
        losses = token_losses(model, np.stack([tokens[start : start + length] for start in starts]), batch=batch)
    found, done = np.zeros(len(tokens) - 1, dtype=np.float32), 0
    for start, row in zip(starts, losses, strict=True):
        found[done : start + length - 1] = row[done - start :]
        done = start + length - 1
    return found


def factors_at(factors: Scaling | Extension | None, length: int) -> Scaling | None:
    """The one set of a sequence of so many tokens; None is the model as it is."""
    return factors.at(length) if isinstance(factors, Extension) else factors


def key_tokens(
    model: PreTrainedModel, factors: Scaling | Extension | None, tokens: np.ndarray, *, window: int, batch: int = 1
) -> list[int]:
    """Which losses of a text are those of key tokens (LongPPL, arXiv 2410.23771).

    A key token is more likely by e² with the whole text before it than with half a window to a window of it, and its
    loss is then below 2 nats.

    Args:
        model: a causal language model.
        factors: None is the model as it is.
        tokens: of one text, ``(tokens,)``.
        window: in tokens, of a short context.
        batch: windows in one forward pass.
    """
    long = model_losses(model, factors, tokens[None])[0]
    short = sliding_losses(model, factors, tokens, length=window, stride=max(1, window // 2), batch=batch)
    key = (short - long > GAIN) & (long < CERTAIN)
    return [int(i) for i in np.flatnonzero(key) if i >= window]
