"""One HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from longrope.report.all_figures import SECTIONS
from longrope.report.figure import Figure
from longrope.report.load import LoadedRun, warnings
from longrope.report.svg import inline_svg
from longrope.report.verdict import RULE, answers, headlines


def page(runs: Sequence[LoadedRun], shown: Sequence[Figure]) -> str:
    """The page's HTML; all text is escaped."""
    place = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = {one.key: inline_svg(one.chart, one.key, one.title) for one in shown if one.chart is not None}
    return place.get_template("page.html").render(
        title=", ".join(dict.fromkeys(run.results.model or run.name for run in runs)),
        runs=[(run, answers(run)) for run in runs],
        headlines=headlines(runs),
        rule=RULE,
        warnings=warnings(runs),
        sections=[(key, title, [one for one in shown if one.section == key]) for key, title in SECTIONS.items()],
        pictures=pictures,
    )
