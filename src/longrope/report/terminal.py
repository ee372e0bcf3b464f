"""The report in a terminal: the same values as on the page, heat maps in colour, curves as sparklines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from longrope.evaluation.figure import Figure, Number
from longrope.report.load import LoadedRun, warnings
from longrope.report.verdict import RULE, answers, headline

VIRIDIS = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725")
BLOCKS = "▁▂▃▄▅▆▇█"
BAR = 24


def show(runs: Sequence[LoadedRun], figures: Sequence[Figure], console: Console) -> None:
    """Print headline, warnings, answers and every figure."""
    for run in runs:
        name = f"{run.name}: " if len(runs) > 1 else ""
        console.print(name + headline(run), style="bold", markup=False, highlight=False)
        for answer in answers(run):
            console.print(f"  {answer.question} {answer.verdict}. {answer.why}", markup=False, highlight=False)
    console.print(RULE, style="dim", markup=False, highlight=False)
    for warning in warnings(runs):
        console.print(f"warning: {warning}", style="bold yellow", markup=False, highlight=False)
    for figure in figures:
        console.print()
        console.print(table_of(figure))
        console.print(figure.says, style="dim", markup=False, highlight=False)


def table_of(figure: Figure) -> Table:
    """Return a figure's table as rich prints it."""
    table = Table(title=Text(figure.title), title_justify="left", header_style="bold")
    for column in figure.columns:
        table.add_column(Text(column.head), justify="right" if column.numeric else "left", overflow="fold")
    extra = {"rows": "shape", "bars": " "}.get(figure.terminal)
    if extra is not None:
        table.add_column(extra)
    largest = max((value for row in figure.rows for value in _numbers(row)), default=0)
    for row, written in zip(figure.rows, figure.written(), strict=True):
        texts = [Text(text) for text in written]
        if figure.terminal == "heat":
            texts = [_heat(value, text) for value, text in zip(row, texts, strict=True)]
        if figure.terminal == "rows":
            texts.append(Text(sparkline(_numbers(row))))
        if figure.terminal == "bars":
            value = max(0.0, *_numbers(row)) if _numbers(row) else 0.0
            texts.append(Text("█" * round(BAR * value / largest) if largest > 0 else ""))
        table.add_row(*texts)
    if figure.terminal == "columns":
        columns = list(zip(*figure.rows, strict=True))[1:]
        table.add_section()
        table.add_row("shape", *(Text(sparkline(_numbers(column))) for column in columns))
    return table


def sparkline(values: Sequence[float]) -> str:
    """Return blocks whose heights show the values between the lowest and the highest, 10 blocks at most.

    >>> sparkline([1, 2, 3, 2])
    '▁▅█▅'
    """
    size = min(10, len(values))
    values = [values[i * len(values) // size] for i in range(size)]
    low, high = min(values, default=0), max(values, default=0)
    return "".join(BLOCKS[round(7 * (value - low) / ((high - low) or 1))] for value in values)


def _numbers(row: Sequence[object]) -> list[float]:
    values = [Number.of(value).value if isinstance(value, float) else value for value in row]
    values = [value.value if isinstance(value, Number) else value for value in values]
    return [float(value) for value in values if isinstance(value, (int, float))]


def _heat(value: object, text: Text) -> Text:
    score = value.value if isinstance(value, Number) else None
    if score is not None:
        index = min(len(VIRIDIS) - 1, max(0, int(score * len(VIRIDIS))))
        text.stylize(f"{'white' if score < 0.5 else 'black'} on {VIRIDIS[index]}")
    return text
