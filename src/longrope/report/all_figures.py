"""All figures of some runs, in the order in which a report shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longrope.evaluation.figure import Figure
from longrope.evaluation.registry import MEASUREMENTS
from longrope.report import factor_figures, table_figures
from longrope.report.load import LoadedRun
from longrope.report.style import Look, looks

SECTIONS = {
    "works": "Does it work at that length?",
    "cost": "What does it cost at short length?",
    "better": "Is it better than the others?",
    "found": "What was chosen, and how it was found",
    "origin": "Every number, and where it comes from",
}


def figures(runs: Sequence[LoadedRun]) -> list[Figure]:
    """Return the figures for which the runs hold numbers, section by section."""
    makers = (
        table_figures.glance,
        table_figures.trainings,
        *(row.figures for row in MEASUREMENTS.values()),
        factor_figures.factors,
        factor_figures.search,
        table_figures.held_out,
        table_figures.provenance,
    )
    order = list(SECTIONS)
    return sorted((figure for make in makers for figure in make(runs)), key=lambda figure: order.index(figure.section))


def looks_of(runs: Sequence[LoadedRun]) -> Mapping[str, Look]:
    """Return the look of every name that any figure draws."""
    candidates = [(run.label(name), candidate) for run in runs for name, candidate in run.results.candidates.items()]
    scalings = [label + suffix for label, candidate in candidates for suffix in candidate.scalings]
    searches = [factor_figures.search_name(run, search, runs) for run in runs for search in run.searches]
    return looks([*(label for label, _ in candidates), *scalings]) | looks(searches)
