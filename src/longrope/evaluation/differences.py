"""Measurement: paired differences of perplexity from the original model and from YaRN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longrope.evaluation.by_length import PERPLEXITY
from longrope.evaluation.figure import MISSING, Column, Figure, Number, fixed, integer, percent
from longrope.evaluation.labelled import LabelledResults
from longrope.evaluation.measurement import Measurement, no_samples
from longrope.evaluation.records import Difference, paired_difference

if TYPE_CHECKING:
    from longrope.evaluation.runner import EvalContext

AGAINST = ("original", "yarn")  # the candidates that all others are compared with
SAYS = (
    "Below 0% the row is better than the one it is compared with. Both read the same documents, so their difference "
    "is more certain than each number. p is the probability of a count of documents at least as one-sided if neither "
    "were better (two-sided sign test). With few documents it cannot be small."
)


def aggregate(evaluation: EvalContext, candidate: str) -> list[Difference]:
    """Return the candidate's differences from those of `AGAINST`, on the same documents."""
    perplexities: Any = evaluation.records[PERPLEXITY.name]
    return [
        paired_difference(perplexity, reference, against=other)
        for other in AGAINST
        if other in perplexities and other != candidate
        for perplexity, reference in zip(perplexities[candidate], perplexities[other], strict=True)
    ]


def figures(runs: Sequence[LabelledResults]) -> list[Figure]:
    """Return a table."""
    rows = [
        [
            run.label(candidate),
            run.label(difference.against),
            difference.corpus or MISSING,
            difference.length,
            Number.of(difference.percent, difference.standard_error),
            f"{difference.wins} of {difference.wins + difference.losses}" if difference.finite else MISSING,
            difference.p if difference.finite else None,
        ]
        for run in runs
        for candidate in run.results.candidates
        for difference in run.results.get(DIFFERENCES.name).get(candidate, ())
    ]
    columns = (
        *(Column("row"), Column("against"), Column("corpus"), Column("length", integer)),
        *(Column("perplexity", percent), Column("better on"), Column("p", fixed(3))),
    )
    return [Figure("differences", "better", "Paired differences", SAYS, columns, rows)] if rows else []


DIFFERENCES = Measurement("differences", Difference, no_samples, aggregate, figures, requested=lambda _: True)
