"""Figures of losses: perplexity by length, loss by position, and what the short context lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt

from longrope.report import charts
from longrope.report.figure import Column, Figure, Number, low_high, percent, plain
from longrope.report.load import LoadedRun
from longrope.report.style import Look

Looks = Mapping[str, Look]


def by_corpus(runs: Sequence[LoadedRun], measure: str) -> dict[str, list[tuple[str, list]]]:
    """For every corpus the rows, in order, with the cells of a measure."""
    kept: dict[str, list[tuple[str, list]]] = {}
    for run in runs:
        for row in run.results.rows:
            cells = getattr(run.results, measure).get(row, ())
            for corpus in dict.fromkeys(cell.corpus for cell in cells):
                kept.setdefault(corpus, []).append((run.label(row), [cell for cell in cells if cell.corpus == corpus]))
    return kept


def titled(title: str, corpora: Mapping[str, object], corpus: str) -> str:
    """The title, with the corpus's name where there are several."""
    return f"{title}: {corpus}" if len(corpora) > 1 else title


def head(length: int, runs: Sequence[LoadedRun]) -> str:
    """A length as the heading of a column."""
    return f"{length:,}" + (" (L0)" if {run.results.rope.original_length for run in runs} == {length} else "")


def originals(runs: Sequence[LoadedRun]) -> dict[float, str]:
    """The original lengths, to be marked."""
    return {float(run.results.rope.original_length): "L0" for run in runs}


def perplexity(runs: Sequence[LoadedRun], looks: Looks) -> list[Figure]:
    """Perplexity by length, a figure a corpus."""
    says = (
        "How many tokens the model hesitates between, on average: lower is better. It hides lost retrieval: read it "
        "together with the heat maps below. Bars are one standard error over documents; all rows share the documents, "
        "so compare two rows by their paired difference, not by whether bars overlap."
    )
    corpora, made = by_corpus(runs, "perplexity"), []
    for number, (corpus, rows) in enumerate(corpora.items()):
        lengths = sorted({cell.length for _, cells in rows for cell in cells})
        table, records = [], []
        for name, cells in rows:
            numbers = {cell.length: Number(cell.perplexity, cell.standard_error) for cell in cells}
            table.append([name, *(numbers.get(length, Number(None)) for length in lengths)])
            records += [
                {"name": name, "x": length, "y": one.value, "tip": f"{name}, {length:,} tokens: {plain(one)}"}
                | low_high(one)
                for length, one in numbers.items()
                if one.value is not None
            ]
        y = charts.log_axis("perplexity on test documents")
        x = charts.lengths_axis(lengths)
        chart = charts.lines(records, looks, x, y, marks=originals(runs)) if records else None
        columns = (Column("row"), *(Column(head(length, runs), plain) for length in lengths))
        made.append(
            Figure(
                f"perplexity-{number}",
                "works",
                titled("Perplexity by length", corpora, corpus),
                says,
                columns,
                table,
                chart,
                "rows",
            )
        )
    return made


def positions(runs: Sequence[LoadedRun], looks: Looks) -> list[Figure]:
    """Mean loss by position in the longest documents, a figure a corpus."""
    says = (
        "Where in a long document the model is lost: a curve that rises beyond L0 means that it is. Perplexity is "
        "e to the loss. Positions differ in how hard their text is, so compare curves, not places."
    )
    corpora, made = by_corpus(runs, "positions"), []
    for number, (corpus, rows) in enumerate(corpora.items()):
        spans = sorted({(cell.start, cell.end) for _, cells in rows for cell in cells})
        found = {
            name: {(cell.start, cell.end): Number(cell.loss, cell.standard_error) for cell in cells}
            for name, cells in rows
        }
        table = [
            [f"{start:,}–{end - 1:,}", *(found[name].get((start, end), Number(None)) for name, _ in rows)]
            for start, end in spans
        ]
        records = [
            {"name": name, "x": (start + end - 1) / 2, "y": one.value}
            | {"tip": f"{name}, positions {start:,} to {end - 1:,}: loss {plain(one)} nats"}
            for name, cells in found.items()
            for (start, end), one in cells.items()
            if one.value is not None
        ]
        x = alt.X("x:Q", title="position (tokens)", axis=alt.Axis(format=",d", tickCount=6))
        y = alt.Y("y:Q", title="loss (nats a token)", scale=alt.Scale(zero=False))
        chart = charts.lines(records, looks, x, y, marks=originals(runs)) if records else None
        columns = (Column("positions"), *(Column(name, plain) for name, _ in rows))
        title = titled("Loss by position", corpora, corpus)
        made.append(Figure(f"positions-{number}", "works", title, says, columns, table, chart, "columns"))
    return made


def short_context(runs: Sequence[LoadedRun], looks: Looks) -> list[Figure]:
    """Percent of perplexity lost at L0 against the original model."""
    table = [
        [run.label(row), run.results.short_context[row]]
        for run in runs
        for row in run.results.rows
        if row in run.results.short_context
    ]
    if not table:
        return []
    says = (
        "How much higher perplexity is at the original length L0 than that of the model before: 0 is no loss. "
        "Texts that fit into L0 pay this price. A mean over few documents: a percent or two may be chance."
    )
    records = [
        {"name": name, "value": value, "label": percent(value)}
        | {"tip": f"{name}: {percent(value)} perplexity at the original length"}
        for name, value in table
        if value is not None
    ]
    chart = charts.bars(records, looks, "percent of perplexity lost at L0") if records else None
    columns = (Column("row"), Column("perplexity at L0", percent))
    return [Figure("short-context", "cost", "Cost at the original length", says, columns, table, chart, "bars")]
