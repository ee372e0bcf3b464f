"""Measurement: mean loss by position in the longest documents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from longrope.evaluation.figure import Axis, Column, Figure, Lines, Number, plain
from longrope.evaluation.labelled import LabelledResults, by_corpus, original_lengths, titled
from longrope.evaluation.measurement import Measurement, numbers
from longrope.evaluation.records import Record, Value
from longrope.evaluation.statistics import mean_error
from longrope.evaluation.text_samples import position_edges, shared_samples

if TYPE_CHECKING:
    from longrope.evaluation.runner import EvalContext

SAYS = (
    "Where in a long document the model is lost: a curve that rises beyond L0 means that it is. Perplexity is "
    "e to the loss. Positions differ in how hard their text is, so compare curves, not places."
)


class PositionLoss(Record):
    """Mean loss in nats of the tokens from ``start`` to ``end - 1`` of the longest length."""

    corpus: str = ""
    start: int
    end: int
    loss: Value
    standard_error: Value = float("nan")


def aggregate(evaluation: EvalContext, candidate: str) -> list[PositionLoss]:
    """Return the candidate's losses by corpus and position."""
    edges = position_edges(max(evaluation.spec.lengths)).tolist()
    records = []
    for corpus, texts in evaluation.texts.items():
        samples = evaluation.samples(candidate, texts)
        for index, (start, end) in enumerate(pairwise(edges)):
            loss, error = mean_error(numbers([sample["positions"][index] for sample in samples]))
            records.append(PositionLoss(corpus=corpus, start=start, end=end, loss=loss, standard_error=error))
    return records


def figures(runs: Sequence[LabelledResults]) -> list[Figure]:
    """Return the curves of the loss, a figure for each corpus."""
    corpora = by_corpus(runs, POSITIONS.name)
    return [
        _curves(f"positions-{number}", titled("Loss by position", corpora, corpus), candidates, runs)
        for number, (corpus, candidates) in enumerate(corpora.items())
    ]


def _curves(
    key: str, title: str, candidates: Sequence[tuple[str, list[PositionLoss]]], runs: Sequence[LabelledResults]
) -> Figure:
    spans = sorted({(record.start, record.end) for _, records in candidates for record in records})
    by_span = {
        name: {(record.start, record.end): Number.of(record.loss, record.standard_error) for record in records}
        for name, records in candidates
    }
    table = [
        [f"{start:,}–{end - 1:,}", *(by_span[name].get((start, end), Number(None)) for name, _ in candidates)]
        for start, end in spans
    ]
    points = [
        {"name": name, "x": (start + end - 1) / 2, "y": number.value}
        | {"tip": f"{name}, positions {start:,} to {end - 1:,}: loss {plain(number)} nats"}
        for name, losses in by_span.items()
        for (start, end), number in losses.items()
        if number.value is not None
    ]
    x, y = Axis("position", "position (tokens)"), Axis("loss", "loss (nats per token)")
    chart = Lines(points, x, y, marks=original_lengths(runs)) if points else None
    columns = (Column("positions"), *(Column(name, plain) for name, _ in candidates))
    return Figure(key, "works", title, SAYS, columns, table, chart, "columns")


POSITIONS = Measurement("positions", PositionLoss, shared_samples, aggregate, figures, requested=lambda _: True)
