"""A measurement: what it measures of a candidate, how it sums up the samples, and how a report shows it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from longrope.evaluation.records import Record
from longrope.scaling import Extension, Scaling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from longrope.evaluation.figure import Figure
    from longrope.evaluation.labelled import LabelledResults
    from longrope.evaluation.runner import EvalContext
    from longrope.tasks.prompts import Prompt


@dataclass(frozen=True, eq=False)
class Corpus:
    """Test documents of one source.

    Args:
        name: Name of the source.
        tokens: int64 ``(documents, at least the longest length)``.
        documents: Name of each document.
    """

    name: str
    tokens: np.ndarray
    documents: tuple[str, ...]

    @property
    def hash(self) -> str:
        """A fingerprint of the tokens."""
        return digest(np.ascontiguousarray(self.tokens).tobytes())


@dataclass(frozen=True)
class Subject:
    """A loaded model with the scaling to measure it with.

    Args:
        model: A causal language model.
        tokenizer: The model's tokenizer.
        scaling: Factors for the model; None is the checkpoint as it is.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    scaling: Scaling | Extension | None


Values = Iterator[tuple[int, Any]]


@dataclass(frozen=True)
class SampleSet:
    """Samples to measure of every candidate, such as the documents of a corpus or the prompts of a task.

    Args:
        name: Name in the journal, unique in an evaluation.
        count: Number of samples.
        tokens: Tokens that one sample passes through the model, for the progress.
        measure: Function (subject, indices of samples) that yields (index, JSON value) of each sample.
        length: Tokens of every text, if they are the same; candidates with equal factors at it share the samples.
    """

    name: str
    count: int
    tokens: int
    measure: Callable[[Subject, Sequence[int]], Values]
    length: int | None = None


@dataclass(frozen=True)
class EvalSpec:
    """What an evaluation measures.

    Args:
        lengths: Lengths in tokens, ascending.
        stride: Tokens between two windows of the sliding perplexity; None does not measure it.
        key_tokens: Name of the candidate that chooses key tokens (LongPPL); None does not measure them.
        retrieval: Prompts by task and length.
        questions: Questions that each text of the retrieval prompts is asked.
        harness: Tasks of lm-evaluation-harness; see `longrope.evaluation.lm_eval.harness`.
        measurements: Names of further rows of ``MEASUREMENTS``.
        batch: Documents in one forward pass.
    """

    lengths: Sequence[int]
    stride: int | None = None
    key_tokens: str | None = None
    retrieval: Mapping[tuple[str, int], Sequence[Prompt]] = field(default_factory=dict)
    questions: int = 1
    harness: SampleSet | None = None
    measurements: Sequence[str] = ()
    batch: int = 1


Records = Mapping[str, tuple[Record, ...]]  # by candidate


@dataclass(frozen=True)
class Measurement:
    """A row of ``MEASUREMENTS``.

    Args:
        name: Key in ``results.json``.
        record: Type of its records.
        sample_sets: Function (evaluation) that returns the samples to measure of every candidate.
        aggregate: Function (evaluation, candidate's name) that returns the candidate's records from its samples, or
            None to leave the candidate out.
        figures: Function (results of one run or several) that returns the figures of a report.
        requested: Function (spec) that says whether a field of the spec requests it; None if it is requested by name.
        encode: Function (records by candidate) that returns JSON values; None writes a list of records by candidate.
        decode: The inverse of ``encode``.
    """

    name: str
    record: type[Record]
    sample_sets: Callable[[EvalContext], Sequence[SampleSet]]
    aggregate: Callable[[EvalContext, str], Sequence[Record] | None]
    figures: Callable[[Sequence[LabelledResults]], list[Figure]]
    requested: Callable[[EvalSpec], bool] | None = None
    encode: Callable[[Any], dict[str, Any]] | None = None
    decode: Callable[[Any], Any] | None = None

    def is_requested(self, spec: EvalSpec) -> bool:
        """Return whether a spec requests this measurement."""
        return self.name in spec.measurements if self.requested is None else self.requested(spec)

    def to_json(self, records: Records) -> dict[str, Any]:
        """Return the records by candidate as JSON values."""
        if self.encode is not None:
            return self.encode(records)
        return {candidate: [record.model_dump() for record in rows] for candidate, rows in records.items()}

    def from_json(self, data: Any) -> Records:
        """Return the records that `to_json` wrote.

        Raises:
            ValidationError: If the data do not fit the records.
        """
        with suppress(AttributeError, TypeError):  # data that cannot be decoded do not fit the records either
            data = data if self.decode is None else self.decode(data)
        kind: Any = dict[str, dict[str, tuple[self.record, ...]]]  # pyright: ignore[reportInvalidTypeForm]
        return TypeAdapter(kind).validate_python({self.name: data})[self.name]


def no_samples(evaluation: EvalContext) -> Sequence[SampleSet]:
    """Return no samples, for a measurement that is computed from the records of others."""
    return ()


def digest(data: bytes) -> str:
    """Return a short fingerprint of some bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def batches(samples: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield the indices in groups of at most ``size``."""
    for start in range(0, len(samples), size):
        yield list(samples[start : start + size])


def numbers(values: Sequence[float | None]) -> list[float]:
    """Return the values with NaN in place of None, which the journal holds for numbers that are not finite."""
    return [float("nan") if value is None else float(value) for value in values]
