"""All figures of some runs, in the order to show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longrope.evaluation.results import parts
from longrope.report import factor_figures, perplexity_figures, retrieval_figures, table_figures
from longrope.report.figure import Figure
from longrope.report.load import LoadedRun
from longrope.report.style import Look, looks

SECTIONS = {
    "works": "Does it work at that length?",
    "cost": "What does it cost at short length?",
    "better": "Is it better than the others?",
    "found": "What was chosen, and how it was found",
    "origin": "Every number, and where it comes from",
}
FIGURES = (
    table_figures.glance,
    perplexity_figures.perplexity,
    perplexity_figures.positions,
    retrieval_figures.retrieval,
    retrieval_figures.choice,
    table_figures.sliding,
    table_figures.key_tokens,
    perplexity_figures.short_context,
    table_figures.tasks,
    table_figures.differences,
    factor_figures.factors,
    factor_figures.search,
    table_figures.held_out,
    table_figures.documents,
    table_figures.provenance,
)


def figures(runs: Sequence[LoadedRun]) -> list[Figure]:
    """Those for which the runs hold numbers."""
    shown = named(runs)
    return [figure for make in FIGURES for figure in make(runs, shown)]


def named(runs: Sequence[LoadedRun]) -> Mapping[str, Look]:
    """The look of every name that any figure draws."""
    rows = [(run, row, about) for run in runs for row, about in run.results.rows.items()]
    whole = [run.label(row) for run, row, _ in rows]
    split = [run.label(row) + suffix for run, row, about in rows for suffix in parts(about.factors)]
    searches = [factor_figures.search_name(run, search, runs) for run in runs for search in run.searches]
    return looks([*whole, *split]) | looks(searches)
