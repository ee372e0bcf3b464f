"""Measurement: what a candidate costs at the original length L0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longrope.evaluation.by_length import PERPLEXITY
from longrope.evaluation.candidate import Candidate
from longrope.evaluation.figure import Bars, Column, Figure, Number, fixed, integer, percent, plain, share
from longrope.evaluation.labelled import LabelledResults
from longrope.evaluation.measurement import Measurement, no_samples
from longrope.evaluation.paired_retrieval import paired_retrieval
from longrope.evaluation.records import Record, Value, paired_difference
from longrope.evaluation.retrieval_score import pooled_rate
from longrope.scaling import Extension

if TYPE_CHECKING:
    from longrope.evaluation.results import EvalResults
    from longrope.evaluation.runner import EvalContext

SAYS = (
    "How much higher perplexity is at the original length L0 than the original model's. Texts that fit into L0 pay "
    "this price. It is a mean over few documents, so a percent or two may be chance."
)
SHORT_SAYS = (
    "What texts of up to L0 tokens pay: perplexity against the original model on the same documents, and retrieval "
    "over all tasks. An engine that chooses by length gives them the short factors, and a static export the long ones. "
    "p is of the exact McNemar test on the same prompts."
)


class ShortContext(Record):
    """Percent by which the perplexity at L0 is above the original model's, on the first corpus."""

    percent: Value


def aggregate(evaluation: EvalContext, candidate: str) -> list[ShortContext] | None:
    """Return the candidate's percent, NaN where a perplexity is not finite; None if a perplexity was not measured."""
    at_l0 = {name: _at_l0(evaluation, name) for name in ("original", candidate)}
    before, after = at_l0["original"], at_l0[candidate]
    if candidate == "original" or before is None or after is None:
        return None
    return [ShortContext(percent=100 * (after / before - 1))]


def _at_l0(evaluation: EvalContext, candidate: str) -> float | None:
    """Return the perplexity at L0 on the first corpus; None if it was not measured."""
    records: Any = evaluation.records[PERPLEXITY.name].get(candidate, ())
    length = evaluation.rope.original_length
    return next((record.perplexity for record in records if record.length == length), None)


def encode(records: Mapping[str, tuple[ShortContext, ...]]) -> dict[str, Value]:
    """Return the percent by candidate."""
    return {candidate: rows[0].percent for candidate, rows in records.items()}


def decode(data: Any) -> Any:
    """Return records by candidate from percents by candidate."""
    return {name: [{"percent": value}] for name, value in data.items()} if isinstance(data, dict) else data


def figures(runs: Sequence[LabelledResults]) -> list[Figure]:
    """Return bars of the cost at L0, and a table of every length up to L0."""
    table = [
        [run.label(candidate), Number.of(record.percent)]
        for run in runs
        for candidate in run.results.candidates
        for record in run.results.get(SHORT_CONTEXT.name).get(candidate, ())
    ]
    bars = [
        {"name": name, "value": number.value, "label": percent(number)}
        | {"tip": f"{name}: {percent(number)} perplexity at the original length"}
        for name, number in table
        if number.value is not None
    ]
    chart = Bars(bars, "percent of perplexity lost at L0") if bars else None
    columns = (Column("row"), Column("perplexity at L0", percent))
    figure = Figure("short-context", "cost", "Cost at the original length", SAYS, columns, table, chart, "bars")
    return [*([figure] if table else []), *short_lengths(runs)]


def short_lengths(runs: Sequence[LabelledResults]) -> list[Figure]:
    """Return a table of perplexity and retrieval at and below L0, with the factors that each candidate uses there."""
    rows = [
        [run.label(candidate), _factors_used(run.results.candidates[candidate]), *values]
        for run in runs
        for candidate in run.results.candidates
        for values in _at_short_lengths(run.results, candidate)
    ]
    columns = (
        *(Column("row"), Column("factors there"), Column("length", integer), Column("perplexity", plain)),
        *(Column("against original", percent), Column("retrieval", share), Column("points", fixed(1, sign="+"))),
        Column("p", fixed(3)),
    )
    title = "At and below the original length"
    return [Figure("short-lengths", "cost", title, SHORT_SAYS, columns, rows)] if rows else []


def _factors_used(candidate: Candidate) -> str:
    """Return which factors a candidate computes short texts with."""
    if isinstance(candidate.scaling, Extension):
        return "short (all 1)" if candidate.scaling.short.is_identity else "short"
    return "as trained" if candidate.scaling is None else "long"


def _at_short_lengths(results: EvalResults, candidate: str) -> Iterator[list[Any]]:
    """Yield length, perplexity, its paired difference from the original model, retrieval, its difference and p."""
    perplexities = _perplexities(results, candidate)
    originals = {} if candidate == "original" else _perplexities(results, "original")
    tried = results.get("retrieval").get(candidate, ())
    reference = () if candidate == "original" else results.get("retrieval").get("original", ())
    for length in sorted({*perplexities, *(record.length for record in tried)}):
        if length <= results.rope.original_length:
            record, original = perplexities.get(length), originals.get(length)
            perplexity = Number.of(record.perplexity, record.standard_error) if record is not None else Number(None)
            gap = Number(None)
            if record and original and record.losses and len(record.losses) == len(original.losses):
                difference = paired_difference(record, original, against="original")
                gap = Number.of(difference.percent, difference.standard_error)
            rate = pooled_rate([score for score in tried if score.length == length])
            pair = paired_retrieval(tried, reference, length=length, against="original")
            yield [length, perplexity, gap, rate, *((None, None) if pair is None else (pair.points, pair.p))]


def _perplexities(results: EvalResults, candidate: str) -> dict[int, Any]:
    """Return the records of the first corpus by length."""
    records = results.get(PERPLEXITY.name).get(candidate, ())
    first = next((record.corpus for record in records), "")
    return {record.length: record for record in records if record.corpus == first}


SHORT_CONTEXT = Measurement(
    "short_context",
    ShortContext,
    no_samples,
    aggregate,
    figures,
    requested=lambda _: True,
    encode=encode,
    decode=decode,
)
