"""The numbers of a run that a verdict compares: perplexity and retrieval of two candidates, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from longrope.evaluation.figure import Number
from longrope.evaluation.paired_retrieval import RetrievalDifference, paired_retrieval
from longrope.evaluation.records import Perplexity, paired_difference
from longrope.evaluation.retrieval_score import pooled_rate
from longrope.evaluation.statistics import student_t
from longrope.report.load import LoadedRun
from longrope.schemes import is_scheme


@dataclass(frozen=True)
class PerplexityGap:
    """The percent by which a perplexity is above another's on the same documents.

    Args:
        percent: Percent with its standard error.
        documents: Number of documents.
        wins: Documents on which the perplexity is lower.
    """

    percent: Number
    documents: int
    wins: int

    @property
    def margin(self) -> float:
        """Half of the 95% interval in percent; infinite for one document."""
        if self.percent.error is None:
            return math.inf
        return student_t(self.documents - 1) * self.percent.error

    def above(self, limit: float = 0.0) -> bool | None:
        """Return whether the percent is above a limit; None if its interval includes the limit."""
        if self.percent.value is None or abs(self.percent.value - limit) <= self.margin:
            return None
        return self.percent.value > limit

    def may_exceed(self, limit: float) -> bool:
        """Return whether the interval reaches beyond a limit; not where all documents have exactly the same loss."""
        value = self.percent.value
        return value is not None and value != 0 and value + self.margin > limit


def lengths_of(run: LoadedRun) -> list[int]:
    """Return the lengths at which perplexity was measured, ascending."""
    return sorted({record.length for records in run.results.get("perplexity").values() for record in records})


def perplexity_record(run: LoadedRun, candidate: str, length: int) -> Perplexity | None:
    """Return the record of the perplexity on the first corpus; None if it was not measured."""
    records: Sequence[Perplexity] = run.results.get("perplexity").get(candidate, ())
    return next((record for record in records if record.length == length), None)


def perplexity_at(run: LoadedRun, candidate: str, length: int) -> Number:
    """Return the perplexity on the first corpus with its standard error."""
    record = perplexity_record(run, candidate, length)
    return Number(None) if record is None else Number.of(record.perplexity, record.standard_error)


def perplexity_gap(
    run: LoadedRun, candidate: str, against: str, length: int, *, against_length: int | None = None
) -> PerplexityGap | None:
    """Return the paired difference of two perplexities; None if one was not measured, or on other documents.

    Args:
        run: Run of both candidates.
        candidate: Name of the candidate.
        against: Name of the other candidate.
        length: Length in tokens.
        against_length: Length of the other candidate's perplexity in tokens; None takes ``length``.
    """
    record = perplexity_record(run, candidate, length)
    other = perplexity_record(run, against, against_length or length)
    if record is None or other is None or not record.losses or len(record.losses) != len(other.losses):
        return None
    gap = paired_difference(record, other, against=against)
    return PerplexityGap(Number.of(gap.percent, gap.standard_error), len(record.losses), gap.wins)


def shared_documents(run: LoadedRun) -> str:
    """Return a sentence on the first corpus where several of its texts are pieces of one document, else nothing."""
    names = next((corpus.get("documents", ()) for corpus in run.results.corpora.values()), ())
    if len(set(names)) == len(names):
        return ""
    documents = f"{len(set(names))} document{'s' if len(set(names)) > 1 else ''}"
    return f" The {len(names)} texts are pieces of {documents}: the intervals hold for these, not for others."


def retrieval_rate(run: LoadedRun, candidate: str, length: int) -> Number:
    """Return the share of hidden answers that a candidate finds at a length, over all tasks and depths."""
    records = run.results.get("retrieval").get(candidate, ())
    return pooled_rate([record for record in records if record.length == length])


def retrieval_gap(run: LoadedRun, candidate: str, against: str, length: int) -> RetrievalDifference | None:
    """Return the paired difference of retrieval; None without the scores of the same prompts."""
    records = run.results.get("retrieval")
    pair = paired_retrieval(records.get(candidate, ()), records.get(against, ()), length=length, against=against)
    stored = run.results.get("paired_retrieval").get(candidate, ())
    return pair or next((gap for gap in stored if (gap.against, gap.length) == (against, length)), None)


def short_context(run: LoadedRun, candidate: str) -> Number:
    """Return the percent of perplexity that the candidate costs at L0."""
    records = run.results.get("short_context").get(candidate, ())
    return Number.of(records[0].percent if records else None)


def best_closed_form(run: LoadedRun, length: int) -> str | None:
    """Return the scheme with the lowest perplexity at a length; None if none was measured."""
    values = {name: perplexity_at(run, name, length).value for name in run.results.candidates if is_scheme(name)}
    finite = {name: value for name, value in values.items() if value is not None}
    return min(finite, key=lambda name: finite[name], default=None)


def long_alone(run: LoadedRun, candidate: str) -> str | None:
    """Return the candidate that has a candidate's long factors at every length, as a static export has them.

    None if there is no such candidate, or if the candidate has one set of factors itself.
    """
    alone = run.results.candidates[candidate].long_alone
    if alone is None:
        return None
    return next((name for name, other in run.results.candidates.items() if other.key == alone.key), None)
