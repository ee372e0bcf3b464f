"""Results of several runs in one report, and the tables that most measurements show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from longrope.evaluation.figure import Column, Figure

if TYPE_CHECKING:
    from longrope.evaluation.results import EvalResults


class LabelledResults(Protocol):
    """The results of one run, with the names of its candidates in a report."""

    @property
    def results(self) -> EvalResults:
        """The results."""
        ...

    def label(self, candidate: str) -> str:
        """Return the candidate's name in the report."""
        ...


def by_corpus(runs: Sequence[LabelledResults], measurement: str) -> dict[str, list[tuple[str, list[Any]]]]:
    """Return for every corpus the candidates' labels, in order, with their records of a measurement."""
    corpora: dict[str, list[tuple[str, list[Any]]]] = {}
    for label, records in labelled_records(runs, measurement):
        for corpus in dict.fromkeys(record.corpus for record in records):
            corpora.setdefault(corpus, []).append((label, [record for record in records if record.corpus == corpus]))
    return corpora


def labelled_records(runs: Sequence[LabelledResults], measurement: str) -> list[tuple[str, tuple[Any, ...]]]:
    """Return the candidates' labels, in order, with their records of a measurement."""
    return [
        (run.label(candidate), run.results.get(measurement)[candidate])
        for run in runs
        for candidate in run.results.candidates
        if candidate in run.results.get(measurement)
    ]


def titled(title: str, corpora: Mapping[str, object], corpus: str) -> str:
    """Return the title, with the corpus's name if there are several corpora."""
    return f"{title}: {corpus}" if len(corpora) > 1 else title


def head(length: int, runs: Sequence[LabelledResults]) -> str:
    """Return a length as the heading of a column."""
    return f"{length:,}" + (" (L0)" if {run.results.rope.original_length for run in runs} == {length} else "")


def original_lengths(runs: Sequence[LabelledResults]) -> dict[float, str]:
    """Return the original lengths as marks of a chart."""
    return {float(run.results.rope.original_length): "L0" for run in runs}


def corpus_table(
    runs: Sequence[LabelledResults],
    measurement: str,
    figure: Callable[[tuple[Column, ...], list[list[Any]]], Figure],
    columns: Mapping[Column, Callable[[Any], Any]],
) -> list[Figure]:
    """Return one figure with a line for every record of a measurement, or none if there are no records.

    Args:
        runs: Results to show.
        measurement: Name of the measurement.
        figure: Function (columns, rows) that makes the figure.
        columns: Functions (record) that return the value of a column.
    """
    rows = [
        [label, corpus, *(value_of(record) for value_of in columns.values())]
        for corpus, candidates in by_corpus(runs, measurement).items()
        for label, records in candidates
        for record in records
    ]
    return [figure((Column("row"), Column("corpus"), *columns), rows)] if rows else []
