"""Measurement: perplexity in overlapping windows of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from longrope.errors import LongRopeError
from longrope.evaluation.candidate import scaling_at
from longrope.evaluation.figure import Column, Figure, Number, integer, plain
from longrope.evaluation.labelled import LabelledResults, corpus_table
from longrope.evaluation.measurement import Corpus, Measurement, SampleSet, Subject, Values, numbers
from longrope.evaluation.records import Perplexity, document_perplexity
from longrope.scaling import Extension, Scaling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from longrope.evaluation.runner import EvalContext

SAYS = (
    "Every token is predicted from nearly a whole window before it. It is lower than perplexity by length, where "
    "the first tokens have little before them: compare rows, not the two kinds."
)


def sliding_losses(
    model: PreTrainedModel,
    scaling: Scaling | Extension | None,
    tokens: np.ndarray,
    *,
    length: int,
    stride: int,
    batch: int = 1,
) -> np.ndarray:
    """Return the loss of every token of a text but the first, float32 ``(tokens - 1,)``, in overlapping windows.

    A window begins ``stride`` tokens after the one before it, and the last one ends with the text. In each window only
    the tokens count that no earlier window has, so most have at least ``length - stride`` tokens before them.

    Args:
        model: A causal language model.
        scaling: Factors; None is the model as it is. An `Extension` takes the set for the window's length.
        tokens: Token ids of one text, ``(tokens,)``.
        length: Tokens of a window.
        stride: Tokens between the beginnings of two windows.
        batch: Windows in one forward pass.

    Raises:
        LongRopeError: If the text is shorter than a window, or the stride is not shorter.
    """
    from longrope.longcontext.token_losses import token_losses
    from longrope.models.patch import patch

    if not 1 <= stride < length <= len(tokens):
        raise LongRopeError(
            f"stride = {stride} with windows of {length} tokens over a text of {len(tokens)}: windows do not fit. "
            "Pass a stride below the window, and windows of the text's length at most."
        )
    last = len(tokens) - length
    starts = [*range(0, last, stride), last]
    with patch(model, scaling_at(scaling, length)):
        windows = token_losses(model, np.stack([tokens[start : start + length] for start in starts]), batch=batch)
    losses = np.zeros(len(tokens) - 1, dtype=np.float32)
    scored = 0
    for start, window in zip(starts, windows, strict=True):
        losses[scored : start + length - 1] = window[scored - start :]
        scored = start + length - 1
    return losses


def sliding_samples(corpus: Corpus, length: int, stride: int, *, batch: int = 1) -> SampleSet:
    """Return the samples that hold the mean loss of every document in overlapping windows."""

    def measure(subject: Subject, samples: Sequence[int]) -> Values:
        for document in samples:
            tokens = corpus.tokens[document]
            losses = sliding_losses(subject.model, subject.scaling, tokens, length=length, stride=stride, batch=batch)
            yield document, float(losses.mean(dtype=float))

    windows = 1 + -(-(corpus.tokens.shape[1] - length) // stride)
    return SampleSet(f"sliding {corpus.name} {length}", len(corpus.tokens), length * windows, measure, length)


def _by_window(evaluation: EvalContext) -> dict[tuple[str, int, int], SampleSet]:
    """Return the samples by corpus, length of a window and stride."""
    spec = evaluation.spec
    assert spec.stride is not None
    strides = {length: min(spec.stride, length - 1) for length in spec.lengths}
    return {
        (corpus.name, length, stride): sliding_samples(corpus, length, stride, batch=spec.batch)
        for corpus in evaluation.corpora
        for length, stride in strides.items()
    }


def sample_sets(evaluation: EvalContext) -> list[SampleSet]:
    """Return the samples of every corpus and length of a window."""
    return list(_by_window(evaluation).values())


def aggregate(evaluation: EvalContext, candidate: str) -> list[Perplexity]:
    """Return the candidate's perplexities by corpus and length of a window."""
    return [
        document_perplexity(numbers(evaluation.samples(candidate, samples)), length, corpus=corpus, stride=stride)
        for (corpus, length, stride), samples in _by_window(evaluation).items()
    ]


def figures(runs: Sequence[LabelledResults]) -> list[Figure]:
    """Return a table."""
    return corpus_table(
        runs,
        SLIDING.name,
        lambda columns, rows: Figure("sliding", "works", "Sliding window", SAYS, columns, rows),
        {
            Column("window", integer): lambda record: record.length,
            Column("stride", integer): lambda record: record.stride,
            Column("perplexity", plain): lambda record: Number.of(record.perplexity, record.standard_error),
        },
    )


SLIDING = Measurement(
    "sliding", Perplexity, sample_sets, aggregate, figures, requested=lambda spec: spec.stride is not None
)
