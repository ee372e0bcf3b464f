"""Measurement: perplexity by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from longrope.evaluation.figure import Axis, Column, Figure, Lines, Number, error_bar, nats, plain
from longrope.evaluation.labelled import LabelledResults, by_corpus, head, original_lengths, titled
from longrope.evaluation.measurement import Measurement, numbers
from longrope.evaluation.records import Perplexity, document_perplexity
from longrope.evaluation.text_samples import shared_samples

if TYPE_CHECKING:
    from longrope.evaluation.runner import EvalContext

SAYS = (
    "How many tokens the model hesitates between, on average: lower is better. It hides lost retrieval: read it "
    "together with the heat maps below. Bars are one standard error over documents; all rows share the documents, "
    "so compare two rows by their paired difference, not by whether bars overlap."
)


def aggregate(evaluation: EvalContext, candidate: str) -> list[Perplexity]:
    """Return the candidate's perplexities by corpus and length."""
    records = []
    for corpus, texts in evaluation.texts.items():
        samples = evaluation.samples(candidate, texts)
        for length in samples[0]["lengths"]:
            losses = numbers([sample["lengths"][length] for sample in samples])
            records.append(document_perplexity(losses, int(length), corpus=corpus))
    return records


def figures(runs: Sequence[LabelledResults]) -> list[Figure]:
    """Return the curves of perplexity and the losses of the documents, a figure for each corpus."""
    corpora = by_corpus(runs, PERPLEXITY.name)
    curves = [
        _curves(f"perplexity-{number}", titled("Perplexity by length", corpora, corpus), candidates, runs)
        for number, (corpus, candidates) in enumerate(corpora.items())
    ]
    documents = [
        _documents(f"documents-{number}", corpus, candidates, runs)
        for number, (corpus, candidates) in enumerate(corpora.items())
    ]
    return [*curves, *(figure for figure in documents if figure.rows)]


def _curves(
    key: str, title: str, candidates: Sequence[tuple[str, list[Perplexity]]], runs: Sequence[LabelledResults]
) -> Figure:
    lengths = _lengths(candidates)
    table, points = [], []
    for name, records in candidates:
        by_length = {record.length: Number.of(record.perplexity, record.standard_error) for record in records}
        table.append([name, *(by_length.get(length, Number(None)) for length in lengths)])
        points += [
            {"name": name, "x": length, "y": number.value, "tip": f"{name}, {length:,} tokens: {plain(number)}"}
            | error_bar(number)
            for length, number in by_length.items()
            if number.value is not None
        ]
    x = Axis("length", "length (tokens)", tuple(lengths))
    y = Axis("perplexity", "perplexity on test documents")
    chart = Lines(points, x, y, marks=original_lengths(runs)) if points else None
    columns = (Column("row"), *(Column(head(length, runs), plain) for length in lengths))
    return Figure(key, "works", title, SAYS, columns, table, chart, "rows")


def _documents(
    key: str, corpus: str, candidates: Sequence[tuple[str, list[Perplexity]]], runs: Sequence[LabelledResults]
) -> Figure:
    lengths = _lengths(candidates)
    losses = {(name, record.length): record.losses for name, records in candidates for record in records}
    count = max((len(values) for values in losses.values()), default=0)
    lists = [run.results.corpora.get(corpus, {}).get("documents", []) for run in runs]
    same = all(names == lists[0] for names in lists) and len(lists[0]) == count
    table = [
        [name, str(document), *(_at(losses.get((name, length), ()), index) for length in lengths)]
        for name, _ in candidates
        for index, document in enumerate(lists[0] if same else range(1, count + 1))
    ]
    title = "Loss of every document" + (f": {corpus}" if corpus else "")
    columns = (Column("row"), Column("document"), *(Column(head(length, runs), nats) for length in lengths))
    says = "The mean loss in nats of each test document; perplexity is e to the mean of these."
    return Figure(key, "origin", title, says, columns, table)


def _lengths(candidates: Sequence[tuple[str, list[Perplexity]]]) -> list[int]:
    return sorted({record.length for _, records in candidates for record in records})


def _at(losses: Sequence[float], index: int) -> float | None:
    return losses[index] if index < len(losses) else None


PERPLEXITY = Measurement("perplexity", Perplexity, shared_samples, aggregate, figures, requested=lambda _: True)
