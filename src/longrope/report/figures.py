"""All figures of some runs, in the order to show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longrope.report import found, measured, recalled, tabled
from longrope.report.looks import Look, looks
from longrope.report.records import parts
from longrope.report.runs import Run
from longrope.report.tables import Figure

SECTIONS = {
    "works": "Does it work at that length?",
    "cost": "What does it cost at short length?",
    "better": "Is it better than the others?",
    "found": "What was chosen, and how it was found",
    "origin": "Every number, and where it comes from",
}
FIGURES = (
    tabled.glance,
    measured.perplexity,
    measured.positions,
    recalled.retrieval,
    recalled.choice,
    tabled.sliding,
    tabled.key_tokens,
    measured.short_context,
    tabled.tasks,
    tabled.differences,
    found.factors,
    found.search,
    tabled.held_out,
    tabled.documents,
    tabled.provenance,
)


def figures(runs: Sequence[Run]) -> list[Figure]:
    """Those for which the runs hold numbers."""
    shown = named(runs)
    return [figure for make in FIGURES for figure in make(runs, shown)]


def named(runs: Sequence[Run]) -> Mapping[str, Look]:
    """The look of every name that any figure draws."""
    rows = [(run, row, about) for run in runs for row, about in run.results.rows.items()]
    whole = [run.label(row) for run, row, _ in rows]
    split = [run.label(row) + suffix for run, row, about in rows for suffix in parts(about.factors)]
    searches = [found.search_name(run, search, runs) for run in runs for search in run.searches]
    return looks([*whole, *split]) | looks(searches)
