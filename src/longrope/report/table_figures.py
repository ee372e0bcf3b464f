"""Figures that are tables only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longrope.report.factor_figures import search_name
from longrope.report.figure import MISSING, Column, Figure, Number, fixed, nats, percent, plain, share, whole
from longrope.report.load import LoadedRun
from longrope.report.perplexity_figures import by_corpus, head
from longrope.report.style import Look
from longrope.report.verdict import lengths_of, recall

Looks = Mapping[str, Look]


def glance(runs: Sequence[LoadedRun], looks: Looks) -> list[Figure]:
    """All rows with the numbers that decide."""
    table = []
    for run in runs:
        lengths = lengths_of(run)
        for row, about in run.results.rows.items():
            cells = {cell.length: cell for cell in reversed(run.results.perplexity.get(row, ()))}
            last = cells.get(lengths[-1]) if lengths else None
            if last is None:
                continue
            cost = run.results.short_context.get(row)
            number = Number(last.perplexity, last.standard_error)
            table.append([run.label(row), last.length, number, recall(run, row), cost, about.weights or MISSING])
    if not table:
        return []
    heads = ("length", whole), ("perplexity there", plain), ("retrieval", share), ("perplexity at L0", percent)
    columns = (Column("row"), *(Column(*one) for one in heads), Column("weights"))
    says = (
        "Every row at the longest length measured: perplexity (lower is better), the mean share of hidden answers "
        "found at the longest length that was tried (higher is better), and how much perplexity rose at the original "
        "length."
    )
    return [Figure("glance", "works", "All rows at a glance", says, columns, table)]


def sliding(runs: Sequence[LoadedRun], looks: Looks) -> list[Figure]:
    """Perplexity of a window that slides over the documents."""
    rows = [
        [name, corpus, cell.length, cell.stride, Number(cell.perplexity, cell.standard_error)]
        for corpus, rows in by_corpus(runs, "sliding").items()
        for name, cells in rows
        for cell in cells
    ]
    heads = ("window", whole), ("stride", whole), ("perplexity", plain)
    columns = (Column("row"), Column("corpus"), *(Column(*one) for one in heads))
    says = (
        "Every token is predicted from nearly a whole window before it. It is lower than perplexity by length, where "
        "the first tokens have little before them: compare rows, not the two kinds."
    )
    return [Figure("sliding", "works", "Sliding window", says, columns, rows)] if rows else []


def key_tokens(runs: Sequence[LoadedRun], looks: Looks) -> list[Figure]:
    """Perplexity of the tokens that need the long context."""
    rows = [
        [name, corpus, cell.length, Number(cell.perplexity), cell.share, cell.chosen_by or MISSING]
        for corpus, rows in by_corpus(runs, "key_tokens").items()
        for name, cells in rows
        for cell in cells
    ]
    heads = ("length", whole), ("perplexity", plain), ("share of tokens", share)
    columns = (Column("row"), Column("corpus"), *(Column(*one) for one in heads), Column("chosen by"))
    says = (
        "Perplexity of only those tokens that are easier with the long context than without (LongPPL): it falls where "
        "a model uses its context. The row that chose the tokens has an advantage."
    )
    return [Figure("key-tokens", "works", "Key tokens", says, columns, rows)] if rows else []


def tasks(runs: Sequence[LoadedRun], looks: Looks) -> list[Figure]:
    """Scores of lm-evaluation-harness."""
    rows = [
        [run.label(row), task, metric, Number(value, _error(values, metric))]
        for run in runs
        for row in run.results.rows
        for task, values in run.results.tasks.get(row, {}).items()
        for metric, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and "_stderr" not in metric
    ]
    columns = (Column("row"), Column("task"), Column("measure"), Column("value", nats))
    says = (
        "Scores of lm-evaluation-harness, ± its standard error. Short tasks tell what the extension cost, not whether "
        "it works at length."
    )
    return [Figure("tasks", "cost", "Tasks", says, columns, rows)] if rows else []


def _error(values: Mapping[str, Any], metric: str) -> float | None:
    """The harness writes acc,none and acc_stderr,none."""
    name, comma, kind = metric.partition(",")
    error = values.get(f"{name}_stderr{comma}{kind}")
    return error if isinstance(error, (int, float)) else None


def differences(runs: Sequence[LoadedRun], looks: Looks) -> list[Figure]:
    """Perplexity against another row, paired over documents."""
    rows = [
        [
            name,
            run.label(one.against),
            one.corpus or MISSING,
            one.length,
            Number(one.percent, one.standard_error),
            f"{one.wins} of {one.wins + one.losses}",
            one.p,
        ]
        for run in runs
        for row in run.results.rows
        for name in [run.label(row)]
        for one in run.results.differences.get(row, ())
    ]
    heads = ("length", whole), ("perplexity", percent)
    columns = (Column("row"), Column("against"), Column("corpus"), *(Column(*one) for one in heads))
    columns += (Column("better on"), Column("p", fixed(3)))
    says = (
        "Below 0% the row is better than the one it is held against. Both read the same documents, so their "
        "difference is surer than each number. p is of a two-sided sign test: the chance of so one-sided a count of "
        "documents if neither were better; with few documents it cannot be small."
    )
    return [Figure("differences", "better", "Paired differences", says, columns, rows)] if rows else []


def held_out(runs: Sequence[LoadedRun], looks: Looks) -> list[Figure]:
    """The losses that chose the winner of a search."""
    kept = {
        (search_name(run, search, runs).rpartition("seed")[0].strip(" :") or run.name, name): loss
        for run in runs
        for search in run.searches
        for name, loss in search.held_out.items()
    }
    columns = (Column("search"), Column("factors"), Column("held-out loss", nats))
    says = "What chose the winner of a search: the mean loss in nats on documents that it did not search on."
    rows = [[place, name, loss] for (place, name), loss in kept.items()]
    return [Figure("held-out", "found", "Held-out comparison", says, columns, rows)] if rows else []


def documents(runs: Sequence[LoadedRun], looks: Looks) -> list[Figure]:
    """The mean loss of every document, of which perplexity is made."""
    made, corpora = [], by_corpus(runs, "perplexity")
    for number, (corpus, rows) in enumerate(corpora.items()):
        lengths = sorted({cell.length for _, cells in rows for cell in cells})
        found = {(name, cell.length): cell.losses for name, cells in rows for cell in cells}
        count = max((len(losses) for losses in found.values()), default=0)
        lists = [run.results.corpora.get(corpus, {}).get("documents", []) for run in runs]
        names = lists[0] if all(one == lists[0] for one in lists) and len(lists[0]) == count else range(1, count + 1)
        table = [
            [name, str(document), *(_at(found.get((name, length), ()), place) for length in lengths)]
            for name, _ in rows
            for place, document in enumerate(names)
        ]
        title = "Loss of every document" + (f": {corpus}" if corpus else "")
        columns = (Column("row"), Column("document"), *(Column(head(length, runs), nats) for length in lengths))
        says = "The mean loss in nats of each test document; perplexity is e to the mean of these."
        if table:
            made.append(Figure(f"documents-{number}", "origin", title, says, columns, table))
    return made


def _at(losses: Sequence[float | None], place: int) -> float | None:
    return losses[place] if place < len(losses) else None


def provenance(runs: Sequence[LoadedRun], looks: Looks) -> list[Figure]:
    """Where the numbers come from."""
    rows = []
    for run in runs:
        results = run.results
        rope = f"{results.rope.dim} dimensions, rope_theta {results.rope.base:,.0f}"
        told = {"model": results.model, "dtype": results.dtype, "rope": rope}
        told["original length L0"] = f"{results.rope.original_length:,} tokens"
        for name, corpus in results.corpora.items():
            told[f"corpus {name}"] = f"{len(corpus.get('documents', ()))} documents, hash {corpus.get('hash', MISSING)}"
        for number, search in enumerate(run.searches, start=1):
            seed, data = search.settings.get("seed", MISSING), search.settings.get("data", MISSING)
            told[f"search {number}"] = f"{search.name}: seed {seed}, data hash {data}"
        rows += [[run.name, key, str(value)] for key, value in (told | _flat(results.provenance)).items() if value]
    says = "What was run, with what, on what, and when: enough to run it again."
    columns = (Column("run"), Column("what"), Column("value"))
    return [Figure("provenance", "origin", "Provenance", says, columns, rows)]


def _flat(data: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in data.items():
        kept |= _flat(value, f"{before}{key} ") if isinstance(value, dict) else {f"{before}{key}": value}
    return kept
