"""The loss of every test document by length and by position, which several measurements share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from longrope.evaluation.measurement import Corpus, SampleSet, Subject, Values, batches, digest

if TYPE_CHECKING:
    from longrope.evaluation.runner import EvalContext

BINS = 32  # of the loss by position


def position_edges(length: int) -> np.ndarray:
    """Return the borders between the bins of positions, int64, ascending from 1 to ``length``."""
    return np.unique(np.linspace(1, length, min(BINS, length - 1) + 1).round().astype(int))


def text_samples(
    corpus: Corpus, lengths: Sequence[int], *, batch: int = 1, key_tokens: Mapping[int, Sequence[int]] | None = None
) -> SampleSet:
    """Return the samples that hold the mean losses of every document in nats.

    A sample holds ``lengths`` (mean loss by length), ``positions`` (mean loss of the longest length between the
    `position_edges`) and ``key`` (mean loss of the key tokens; None without any).

    Args:
        corpus: Test documents.
        lengths: Lengths in tokens.
        batch: Documents in one forward pass.
        key_tokens: Indices of the losses of key tokens by document.
    """
    longest = max(lengths)
    suffix = "" if key_tokens is None else f" of {digest(repr(sorted(key_tokens.items())).encode())}"

    def measure(subject: Subject, samples: Sequence[int]) -> Values:
        from longrope.evaluation import losses

        for documents in batches(samples, batch):
            tokens = corpus.tokens[documents]
            by_length = losses.losses_by_length(subject.model, subject.scaling, tokens, lengths, batch=batch)
            for row, document in enumerate(documents):
                document_losses = by_length[longest][row].astype(float)
                bins = np.split(document_losses, position_edges(longest)[1:-1] - 1)
                indices = [] if key_tokens is None else list(key_tokens[document])
                yield (
                    document,
                    {
                        "lengths": {str(n): float(by_length[n][row, : n - 1].mean(dtype=float)) for n in lengths},
                        "positions": [float(losses_of_bin.mean()) for losses_of_bin in bins],
                        "key": float(document_losses[indices].mean()) if indices else None,
                    },
                )

    return SampleSet(f"text {corpus.name}{suffix}", len(corpus.tokens), longest, measure)


def shared_samples(evaluation: EvalContext) -> Sequence[SampleSet]:
    """Return the text samples of every corpus."""
    return list(evaluation.texts.values())
