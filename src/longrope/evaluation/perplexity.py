"""Perplexity by length of several factors side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from longrope.evaluation.statistics import mean_error
from longrope.longcontext.token_losses import token_losses
from longrope.models.patch import patch
from longrope.rope import Rope, full_attention_fields
from longrope.scaling import Extension, Scaling


@dataclass(frozen=True)
class Perplexity:
    """Token-weighted perplexity of the first ``length`` tokens of some documents, and how sure it is.

    ``standard_error`` is of the mean over documents (NaN for a single one); ``losses`` is the mean loss of each.
    """

    length: int
    perplexity: float
    standard_error: float
    losses: tuple[float, ...]


def perplexity_of_losses(losses: np.ndarray, length: int) -> Perplexity:
    """Of the first ``length`` tokens, from the losses by token ``(documents, at least length - 1)``.

    >>> perplexity_of_losses(np.log([[2.0, 2.0, 8.0]]), 3).perplexity.__round__(6)
    2.0
    """
    return perplexity_of_documents(losses[:, : length - 1].mean(axis=1, dtype=np.float64), length)


def perplexity_of_documents(losses: Sequence[float] | np.ndarray, length: int) -> Perplexity:
    """From the mean losses of documents of one length, ``(documents,)`` in nats."""
    mean, error = mean_error(losses)
    value = float(np.exp(mean))
    return Perplexity(length, value, value * error, tuple(map(float, losses)))


def model_losses(
    model: PreTrainedModel,
    factors: Scaling | Extension | None,
    tokens: np.ndarray,
    *,
    batch: int = 1,
    done: Callable[[int], None] | None = None,
) -> np.ndarray:
    """`token_losses` of a model with some factors; None is the model as it is."""
    with patch(model, factors):
        return token_losses(model, tokens, batch=batch, on_progress=done)


def compare(
    model: PreTrainedModel,
    candidates: Mapping[str, Scaling | Extension | None],
    tokens: np.ndarray,
    lengths: Sequence[int],
    *,
    batch: int = 1,
    done: Callable[[str, int], None] | None = None,
) -> dict[str, list[Perplexity]]:
    """Perplexity at every length of every candidate, on the same documents.

    One forward pass of the longest length gives all lengths where the factors do not depend on it; an `Extension`, or a
    checkpoint with two sets of its own, takes a second pass for the lengths up to the original one.

    Args:
        model: a causal language model.
        candidates: factors by name; None is the model as it is.
        tokens: ``(documents, at least the longest length)``.
        lengths: in tokens.
        batch: documents in one forward pass.
        done: called with the candidate's name and its number of finished documents.
    """
    for factors in candidates.values():
        with patch(model, factors):  # refuse what does not fit before the first long pass
            pass
    table = {}
    for name, factors in candidates.items():
        report = None if done is None else (lambda count, name=name: done(name, count))
        losses = losses_by_length(model, factors, tokens, lengths, batch=batch, done=report)
        table[name] = [perplexity_of_losses(losses[length], length) for length in lengths]
    return table


def losses_by_length(
    model: PreTrainedModel,
    factors: Scaling | Extension | None,
    tokens: np.ndarray,
    lengths: Sequence[int],
    *,
    batch: int = 1,
    done: Callable[[int], None] | None = None,
) -> dict[int, np.ndarray]:
    """The losses by token of the first tokens of some documents, at every length ``(documents, at least length - 1)``.

    Takes one forward pass a document, or two, as `compare` does.

    Args:
        model: a causal language model.
        factors: None is the model as it is.
        tokens: ``(documents, at least the longest length)``.
        lengths: in tokens.
        batch: documents in one forward pass.
        done: called with the number of documents that are finished in the pass of the longest length.
    """
    border = _border(model, factors)
    losses: dict[int, np.ndarray] = {}
    for part in ([n for n in lengths if n <= border], [n for n in lengths if n > border]):
        if part:
            told = done if max(part) == max(lengths) else None
            found = model_losses(model, factors, tokens[:, : max(part)], batch=batch, done=told)
            losses |= dict.fromkeys(part, found)
    return losses


def _border(model: PreTrainedModel, factors: Scaling | Extension | None) -> int:
    """The length up to which other factors are used than beyond; 0 if they are the same at every length."""
    if isinstance(factors, Extension):
        return factors.rope.original_length
    own = full_attention_fields(getattr(model.config.get_text_config(), "rope_parameters", None))
    depends = factors is None and own.get("rope_type", "default") in ("longrope", "dynamic")
    return Rope.of(model).original_length if depends else 0
