"""Measured values: frozen records with the keys of ``results.json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, WithJsonSchema, model_serializer

from longrope.evaluation.statistics import mean_error, sign_test

# JSON has no NaN: results.json holds null. All NaNs are one object, so records that are read again compare equal.
Value = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    AfterValidator(lambda value: value if math.isfinite(value) else math.nan),
    WithJsonSchema({"type": ["number", "null"]}),
]


MEASURED = (
    "perplexity",
    "loss",
    "score",
    "percent",
    "points",
    "value",
)  # fields of measured values, beside errors and counts


class Record(BaseModel):
    """A frozen record; it ignores keys that a later version adds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @property
    def finite(self) -> bool:
        """Whether the measured value is finite; its standard error is not for a single sample."""
        values = [getattr(self, name, 0.0) for name in MEASURED]
        return all(value is not None and (isinstance(value, str) or math.isfinite(value)) for value in values)


class Perplexity(Record):
    """Token-weighted perplexity of some documents; NaN where a value is not finite.

    Args:
        corpus: Name of the documents' source.
        stride: Tokens between two windows, for perplexity in overlapping windows.
        length: Tokens of each document (or window) that count.
        perplexity: exp of the mean loss.
        standard_error: Standard error of the perplexity over documents; NaN for one document.
        losses: Mean loss of each document in nats.
    """

    corpus: str = ""
    stride: int | None = None
    length: int
    perplexity: Value
    standard_error: Value = math.nan
    losses: tuple[Value, ...] = ()

    @model_serializer(mode="wrap")
    def _without_stride(self, serialize: Any) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value is not None}


class Difference(Record):
    """Perplexity of a candidate against another's on the same documents.

    Args:
        corpus: Name of the documents' source.
        length: Tokens of each document.
        against: Name of the other candidate.
        percent: Percent by which the perplexity is above the other's (below 0: better).
        standard_error: Standard error of the percent over documents; NaN for one document.
        wins: Documents on which the candidate is better.
        losses: Documents on which the candidate is worse.
        p: Probability of a count at least as one-sided if neither were better (two-sided sign test).
    """

    corpus: str = ""
    length: int
    against: str
    percent: Value
    standard_error: Value = math.nan
    wins: int
    losses: int
    p: Value = math.nan


def document_perplexity(
    losses: Sequence[float] | np.ndarray, length: int, *, corpus: str = "", stride: int | None = None
) -> Perplexity:
    """Return the perplexity of documents of one length from their mean losses.

    Args:
        losses: Mean loss of each document in nats, ``(documents,)``.
        length: Tokens of each document.
        corpus: Name of the documents' source.
        stride: Tokens between two windows, where the losses are those of overlapping windows.
    """
    mean, error = mean_error(losses)
    perplexity = _exp(mean)
    return Perplexity(
        corpus=corpus,
        stride=stride,
        length=length,
        perplexity=perplexity,
        standard_error=perplexity * error,
        losses=tuple(map(float, losses)),
    )


def paired_difference(perplexity: Perplexity, reference: Perplexity, *, against: str) -> Difference:
    """Return the paired difference of two perplexities of the same documents.

    If a loss is not finite, nothing is counted, and percent and p are NaN.

    Args:
        perplexity: Perplexity of the candidate.
        reference: Perplexity of the other candidate.
        against: Name of the other candidate.

    >>> ours, yarn = document_perplexity([2.0, 2.1, 1.9], 64), document_perplexity([2.1, 2.2, 2.0], 64)
    >>> difference = paired_difference(ours, yarn, against="yarn")
    >>> round(difference.percent, 3), difference.wins, difference.p
    (-9.516, 3, 0.25)
    """
    gaps = np.asarray(perplexity.losses) - np.asarray(reference.losses)
    mean, error = mean_error(gaps)
    ratio = _exp(mean)
    wins, losses = (0, 0) if math.isnan(mean) else (int((gaps < 0).sum()), int((gaps > 0).sum()))
    return Difference(
        corpus=perplexity.corpus,
        length=perplexity.length,
        against=against,
        percent=100 * (ratio - 1),
        standard_error=100 * ratio * error,
        wins=wins,
        losses=losses,
        p=math.nan if math.isnan(mean) else sign_test(wins, losses),
    )


def _exp(value: float) -> float:
    """Return e to a value; infinity where that is too large for a float."""
    with np.errstate(over="ignore"):
        return float(np.exp(value))
