"""Write a report from Python."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from longrope.errors import LongRopeError
from longrope.evaluation.results import EvalResults, printable
from longrope.report.all_figures import figures, looks_of
from longrope.report.charts import draw
from longrope.report.formats import format_of, formatted
from longrope.report.load import LoadedRun, read_runs, with_clashes
from longrope.report.svg import save
from longrope.storage.atomic import dumps, write_text

Runs = EvalResults | str | Path | Sequence["EvalResults | str | Path"]


def report(runs: Runs, path: str | Path) -> None:
    """Write one HTML page of some results, which needs no network and runs no script, or tables.

    Args:
        runs: Results, folders of ``longrope eval``, ``extend`` or ``search``, or files of results; one or several.
        path: Path of the report. Its ending decides the format: .md, .csv, .json or .txt; any other is a page.

    Raises:
        LongRopeError: If a folder or file holds no results or damaged ones, or the report cannot be written.
    """
    runs = list(runs) if isinstance(runs, Iterable) and not isinstance(runs, str) else [runs]
    write_text(path, formatted(_loaded(runs), format_of(path)))


def _loaded(runs: Sequence[EvalResults | str | Path]) -> tuple[LoadedRun, ...]:
    if not runs or not all(isinstance(run, (EvalResults, str, Path)) for run in runs):
        raise LongRopeError(
            f"runs = {runs!r:.60}: not results. Pass EvalResults, or paths of folders or files of results."
        )
    folders = read_runs([Path(run) for run in runs if isinstance(run, (str, Path))])
    named = [(f"results {number}", run) for number, run in enumerate(runs, 1) if isinstance(run, EvalResults)]
    if len(named) == 1 and named[0][1].model not in ("", *(run.name for run in folders)):
        named = [(run.model, run) for _, run in named]
    named = [(name, EvalResults.from_json(json.loads(dumps(run.to_json())))) for name, run in named]  # as from a file
    return with_clashes([*folders, *(LoadedRun(printable(name), results) for name, results in named)])


def write_pictures(runs: Sequence[LoadedRun], folder: Path) -> None:
    """Write every chart of the runs' figures as SVG and PNG."""
    looks = looks_of(runs)
    for figure in figures(runs):
        if figure.chart is not None:
            picture = draw(figure.chart, looks).properties(title=figure.title)
            save(picture, folder / f"{figure.key}.svg")
            save(picture, folder / f"{figure.key}.png")
