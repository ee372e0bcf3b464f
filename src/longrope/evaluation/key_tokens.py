"""Measurement: perplexity of the tokens that need the long context (LongPPL, arXiv 2410.23771)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from longrope.errors import LongRopeError, suspect
from longrope.evaluation.figure import MISSING, Column, Figure, Number, integer, plain, share
from longrope.evaluation.labelled import LabelledResults, corpus_table
from longrope.evaluation.measurement import Corpus, Measurement, SampleSet, Subject, Values, numbers
from longrope.evaluation.records import Record, Value, document_perplexity
from longrope.evaluation.sliding_window import sliding_losses
from longrope.evaluation.text_samples import shared_samples
from longrope.scaling import Extension, Scaling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from longrope.evaluation.runner import EvalContext

GAIN, CERTAIN = 2.0, 2.0  # nats; LongPPL's alpha and minus its beta (arXiv 2410.23771 section 3.2)
WINDOW = 4096  # tokens of a short context, as in LongPPL; L0 where that is less
SAYS = (
    "Perplexity of only those tokens that are easier with the long context than without (LongPPL): it falls where "
    "a model uses its context. The row that chose the tokens has an advantage."
)


class KeyTokens(Record):
    """Perplexity of key tokens, the share of all tokens that they are, and the candidate that chose them."""

    corpus: str = ""
    length: int
    perplexity: Value
    share: Value = math.nan
    chosen_by: str = ""


def key_tokens(
    model: PreTrainedModel,
    scaling: Scaling | Extension | None,
    tokens: np.ndarray,
    *,
    window: int,
    batch: int = 1,
) -> list[int]:
    """Return the indices of the losses of a text's key tokens.

    A key token is e² times likelier with the whole text before it than with half a window to a window of it, and its
    loss is then below 2 nats.

    Args:
        model: A causal language model.
        scaling: Factors; None is the model as it is.
        tokens: Token ids of one text, ``(tokens,)``.
        window: Tokens of a short context.
        batch: Windows in one forward pass.

    Raises:
        LongRopeError: Losses are not finite.
    """
    from longrope.evaluation.losses import model_losses

    long = model_losses(model, scaling, tokens[None])[0]
    if not np.isfinite(long).all():
        dtype = str(model.dtype).removeprefix("torch.")
        raise LongRopeError(f"key_tokens: losses are not finite, so no tokens can be chosen. {suspect(dtype)}")
    short = sliding_losses(model, scaling, tokens, length=window, stride=max(1, window // 2), batch=batch)
    is_key = (short - long > GAIN) & (long < CERTAIN)
    return [int(index) for index in np.flatnonzero(is_key) if index >= window]


def choice_samples(corpus: Corpus, window: int, *, batch: int = 1) -> SampleSet:
    """Return the samples that hold the key tokens of every document."""

    def measure(subject: Subject, samples: Sequence[int]) -> Values:
        for document in samples:
            tokens = corpus.tokens[document]
            yield document, key_tokens(subject.model, subject.scaling, tokens, window=window, batch=batch)

    return SampleSet(f"key tokens {corpus.name}", len(corpus.tokens), 3 * corpus.tokens.shape[1], measure)


def choose_key_tokens(evaluation: EvalContext, corpus: Corpus) -> dict[int, list[int]]:
    """Return the key tokens by document that the candidate of the spec chooses, measuring what is missing."""
    spec = evaluation.spec
    assert spec.key_tokens is not None
    window = min(WINDOW, evaluation.rope.original_length, max(spec.lengths) - 1)
    samples = choice_samples(corpus, window, batch=spec.batch)
    evaluation.measure([samples], [spec.key_tokens])
    return dict(enumerate(evaluation.samples(spec.key_tokens, samples)))


def aggregate(evaluation: EvalContext, candidate: str) -> list[KeyTokens]:
    """Return the perplexity of the key tokens of all documents together, by corpus."""
    longest = max(evaluation.spec.lengths)
    records = []
    for corpus, texts in evaluation.texts.items():
        counts = [len(indices) for indices in evaluation.key_tokens[corpus].values()]
        losses = numbers([sample["key"] for sample in evaluation.samples(candidate, texts)])
        total = sum(count * loss for count, loss in zip(counts, losses, strict=True) if count)
        perplexity = document_perplexity([total / sum(counts)], longest).perplexity if any(counts) else math.nan
        fraction = sum(counts) / (len(counts) * (longest - 1))
        chosen_by = evaluation.spec.key_tokens or ""
        record = KeyTokens(corpus=corpus, length=longest, perplexity=perplexity, share=fraction, chosen_by=chosen_by)
        records.append(record)
    return records


def figures(runs: Sequence[LabelledResults]) -> list[Figure]:
    """Return a table."""
    return corpus_table(
        runs,
        KEY_TOKENS.name,
        lambda columns, rows: Figure("key-tokens", "works", "Key tokens", SAYS, columns, rows),
        {
            Column("length", integer): lambda record: record.length,
            Column("perplexity", plain): lambda record: Number.of(record.perplexity if record.share else None),
            Column("share of tokens", share): lambda record: record.share,
            Column("chosen by"): lambda record: record.chosen_by or MISSING,
        },
    )


KEY_TOKENS = Measurement(
    "key_tokens", KeyTokens, shared_samples, aggregate, figures, requested=lambda spec: spec.key_tokens is not None
)
