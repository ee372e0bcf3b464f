"""The formats of a report: terminal and page, and tables as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from longrope.errors import unknown
from longrope.evaluation.figure import Figure, Number
from longrope.evaluation.registry import MEASUREMENTS
from longrope.report.all_figures import figures
from longrope.report.load import LoadedRun, warnings
from longrope.report.verdict import sentences
from longrope.storage.atomic import dumps

WIDTH = 200  # characters of a line of text in a file


def formatted(runs: Sequence[LoadedRun], name: str) -> str:
    """Return the report of some runs as text of a format.

    Raises:
        LongRopeError: If there is no such format.
    """
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    return FORMATS[name](runs)


def format_of(path: str | Path) -> str:
    """Return the format that a file's ending says; html for other endings.

    >>> format_of("tables.md"), format_of("report.html"), format_of("report")
    ('markdown', 'html', 'html')
    """
    return SUFFIXES.get(Path(path).suffix.lower(), "html")


def text(runs: Sequence[LoadedRun]) -> str:
    """Return what the terminal shows, without colours."""
    from rich.console import Console

    from longrope.report.terminal import show

    console = Console(file=io.StringIO(), width=WIDTH)
    show(runs, figures(runs), console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def html(runs: Sequence[LoadedRun]) -> str:
    """Return one page with charts."""
    from longrope.report.html import page

    return page(runs, figures(runs))


def markdown(runs: Sequence[LoadedRun]) -> str:
    """Return a table for every figure, under its title."""
    return "\n\n".join(f"### {_escaped(figure.title)}\n\n{_markdown_table(figure)}" for figure in figures(runs)) + "\n"


def _markdown_table(figure: Figure) -> str:
    heads = [_escaped(column.head) for column in figure.columns]
    rules = ["---:" if column.numeric else "---" for column in figure.columns]
    rows = [heads, rules, *([_escaped(value) for value in row] for row in figure.written())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _escaped(value: str) -> str:
    for character in "\\|<*_`":
        value = value.replace(character, f"\\{character}")
    return value


def as_csv(runs: Sequence[LoadedRun]) -> str:
    """Return a line for every record of every measurement; fields that are lists are left out."""
    lines = [
        {"run": run.name, "model": run.results.model, "candidate": candidate, "measurement": name}
        | {key: value for key, value in record.model_dump().items() if not isinstance(value, (tuple, list))}
        for run in runs
        for name in MEASUREMENTS
        for candidate, records in run.results.get(name).items()
        for record in records
    ]
    table = io.StringIO()
    columns = list(dict.fromkeys(key for line in lines for key in line))
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: "" if value is None or value != value else value for key, value in line.items()})
    return table.getvalue()


def as_json(runs: Sequence[LoadedRun]) -> str:
    """Return the verdicts, the warnings and the tables of all figures as JSON."""
    tables = [
        {name: getattr(figure, name) for name in ("key", "section", "title", "says")}
        | {
            "columns": [column.head for column in figure.columns],
            "rows": [[_plain(value) for value in row] for row in figure.rows],
        }
        for figure in figures(runs)
    ]
    verdicts = {run.name: sentences(run) for run in runs}
    return dumps({"verdicts": verdicts, "warnings": warnings(runs), "tables": tables})


def _plain(value: Any) -> Any:
    """Return a table's value as JSON values; a number has its standard error or its interval."""
    if not isinstance(value, Number):
        return value
    low, high = value.interval or (None, None)
    fields = {"value": value.value, "standard_error": value.error, "low": low, "high": high}
    return {key: number for key, number in fields.items() if key == "value" or number is not None}


FORMATS: dict[str, Callable[[Sequence[LoadedRun]], str]] = {
    "text": text,
    "html": html,
    "markdown": markdown,
    "csv": as_csv,
    "json": as_json,
}
SUFFIXES = {".txt": "text", ".html": "html", ".md": "markdown", ".csv": "csv", ".json": "json"}
