"""One HTML page without scripts, which loads nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from longrope.evaluation.figure import Figure
from longrope.report.all_figures import SECTIONS, looks_of
from longrope.report.charts import draw
from longrope.report.load import LoadedRun, warnings
from longrope.report.svg import inline_svg
from longrope.report.verdict import RULE, answers, headlines


def page(runs: Sequence[LoadedRun], figures: Sequence[Figure]) -> str:
    """Return the page's HTML. All text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    looks = looks_of(runs)
    pictures = {
        figure.key: inline_svg(draw(figure.chart, looks), figure.key, figure.title)
        for figure in figures
        if figure.chart is not None
    }
    return environment.get_template("page.html").render(
        title=", ".join(dict.fromkeys(run.results.model or run.name for run in runs)),
        runs=[(run, answers(run)) for run in runs],
        headlines=headlines(runs),
        rule=RULE,
        warnings=warnings(runs),
        sections=[
            (key, title, [figure for figure in figures if figure.section == key]) for key, title in SECTIONS.items()
        ],
        pictures=pictures,
    )
