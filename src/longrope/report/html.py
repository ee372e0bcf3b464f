"""One HTML page without scripts, which loads nothing from the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from longrope.evaluation.figure import Figure
from longrope.report.all_figures import SECTIONS, looks_of
from longrope.report.charts import draw
from longrope.report.load import LoadedRun, warnings
from longrope.report.style import Look
from longrope.report.svg import inline_svg
from longrope.report.verdict import RULE, answers, sentences


def page(runs: Sequence[LoadedRun], figures: Sequence[Figure]) -> str:
    """Return the page of some runs as HTML. All text is escaped."""
    names = ", ".join(dict.fromkeys(run.results.model or run.name for run in runs))
    verdict = {
        "runs": [(run, answers(run)) for run in runs],
        "verdicts": [(run.name if len(runs) > 1 else "", sentences(run)) for run in runs],
        "rule": RULE,
        "warnings": warnings(runs),
    }
    return _rendered(f"Context extension of {names}", figures, looks_of(runs), SECTIONS, verdict)


def figures_page(heading: str, figures: Sequence[Figure], looks: Mapping[str, Look]) -> str:
    """Return a page of figures without runs as HTML. All text is escaped."""
    verdict = {"runs": [], "verdicts": [], "rule": "", "warnings": []}
    return _rendered(heading, figures, looks, {"found": "Factors"}, verdict)


def _rendered(
    heading: str,
    figures: Sequence[Figure],
    looks: Mapping[str, Look],
    sections: Mapping[str, str],
    verdict: Mapping[str, Any],
) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = {
        figure.key: inline_svg(draw(figure.chart, looks), figure.key, figure.title)
        for figure in figures
        if figure.chart is not None
    }
    shown = [(key, title, [figure for figure in figures if figure.section == key]) for key, title in sections.items()]
    return environment.get_template("page.html").render(heading=heading, sections=shown, pictures=pictures, **verdict)
