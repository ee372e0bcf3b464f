"""Measurement: what a candidate costs at the original length L0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longrope.evaluation.by_length import PERPLEXITY
from longrope.evaluation.figure import Bars, Column, Figure, Number, percent
from longrope.evaluation.labelled import LabelledResults
from longrope.evaluation.measurement import Measurement, no_samples
from longrope.evaluation.records import Record, Value

if TYPE_CHECKING:
    from longrope.evaluation.runner import EvalContext

SAYS = (
    "How much higher perplexity is at the original length L0 than the original model's. Texts that fit into L0 pay "
    "this price. It is a mean over few documents, so a percent or two may be chance."
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
    """Return bars."""
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
    return [figure] if table else []


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
