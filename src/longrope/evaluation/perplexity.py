"""Perplexity of token sequences at several lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from longrope.data.token_sequences import TokenSequences
from longrope.evaluation.losses import check_lengths, losses_by_length
from longrope.evaluation.records import Perplexity, document_perplexity
from longrope.evaluation.sequences import token_rows
from longrope.models.load import load
from longrope.models.peft_model import check_plain_model
from longrope.scaling import Extension, Scaling
from longrope.units import token_counts


def perplexity(
    model: PreTrainedModel | str | Path,
    sequences: TokenSequences,
    lengths: Sequence[int | str] | int | str,
    *,
    scaling: Scaling | Extension | None = None,
    batch: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> list[Perplexity]:
    """Return the perplexity of the first tokens of some sequences, one `Perplexity` for each length.

    Args:
        model: A causal language model, or its name.
        sequences: Token ids: lists, arrays or tensors, each of at least the longest length.
        lengths: Lengths in tokens, or one, such as 32768 or ``"32k"``.
        scaling: Factors to run the model with; None runs it as it is.
        batch: Sequences in one forward pass.
        on_progress: Called with the number of finished sequences.

    Raises:
        LongRopeError: If a sequence has fewer tokens than a length, or the factors do not fit the model.
    """
    lengths = token_counts("lengths", lengths, 1)
    model = load(model)[0] if isinstance(model, (str, Path)) else model
    check_plain_model(model)
    tokens = token_rows(sequences, lengths)
    losses = losses_by_length(model, scaling, tokens, lengths, batch=batch, on_progress=on_progress)
    return [perplexity_of_losses(losses[length], length) for length in lengths]


def perplexity_of_losses(losses: np.ndarray, length: int) -> Perplexity:
    """Return the perplexity of the first ``length`` tokens from the losses by token.

    Args:
        losses: Losses of `token_losses` in nats, ``(documents, at least length - 1)``.
        length: Length in tokens.

    Raises:
        LongRopeError: If there are fewer losses.

    >>> perplexity_of_losses(np.log([[2.0, 2.0, 8.0]]), 3).perplexity.__round__(6)
    2.0
    """
    check_lengths([length], losses.shape[1] + 1)
    return document_perplexity(losses[:, : length - 1].mean(axis=1, dtype=np.float64), length)
