"""The report in a terminal: the same cells as on the page, heat maps in colour, curves as sparklines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from longrope.report.figure import Figure, Number
from longrope.report.load import LoadedRun, warnings
from longrope.report.verdict import RULE, answers, headlines

VIRIDIS = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725")
BLOCKS = "▁▂▃▄▅▆▇█"
BAR = 24


def show(runs: Sequence[LoadedRun], shown: Sequence[Figure], console: Console) -> None:
    """Print headline, warnings, answers and every figure."""
    for run, sentence in zip(runs, headlines(runs), strict=True):
        console.print(sentence, style="bold", markup=False, highlight=False)
        for one in answers(run):
            console.print(f"  {one.question} {one.verdict}. {one.why}", markup=False, highlight=False)
    console.print(RULE, style="dim", markup=False, highlight=False)
    for one in warnings(runs) if len(runs) > 1 else ():
        console.print(f"warning: {one}", style="bold yellow", markup=False, highlight=False)
    for figure in shown:
        console.print()
        console.print(table_of(figure))
        console.print(figure.says, style="dim", markup=False, highlight=False)


def table_of(figure: Figure) -> Table:
    """A figure's table as rich prints it."""
    table = Table(title=Text(figure.title), title_justify="left", header_style="bold")
    for column in figure.columns:
        table.add_column(Text(column.head), justify="right" if column.numeric else "left", overflow="fold")
    extra = {"rows": "shape", "bars": " "}.get(figure.terminal)
    if extra is not None:
        table.add_column(extra)
    largest = max((value for row in figure.rows for value in _values(row)), default=0)
    for row, written in zip(figure.rows, figure.cells(), strict=True):
        cells = [Text(text) for text in written]
        if figure.terminal == "heat":
            cells = [_heat(cell, text) for cell, text in zip(row, cells, strict=True)]
        if figure.terminal == "rows":
            cells.append(Text(sparkline(_values(row))))
        if figure.terminal == "bars":
            value = max(0.0, *_values(row)) if _values(row) else 0.0
            cells.append(Text("█" * round(BAR * value / largest) if largest > 0 else ""))
        table.add_row(*cells)
    if figure.terminal == "columns":
        columns = zip(*figure.rows, strict=True)
        table.add_section()
        table.add_row("shape", *(Text(sparkline(_values(one))) for one in list(columns)[1:]))
    return table


def sparkline(values: Sequence[float]) -> str:
    """Blocks as high as the values between the lowest and the highest; at most 10 of them.

    >>> sparkline([1, 2, 3, 2])
    '▁▅█▅'
    """
    size = min(10, len(values))
    values = [values[i * len(values) // size] for i in range(size)]
    low, high = min(values, default=0), max(values, default=0)
    return "".join(BLOCKS[round(7 * (value - low) / ((high - low) or 1))] for value in values)


def _values(row: Sequence[object]) -> list[float]:
    found = [cell.value if isinstance(cell, Number) else cell for cell in row]
    return [float(one) for one in found if isinstance(one, (int, float))]


def _heat(cell: object, text: Text) -> Text:
    value = cell.value if isinstance(cell, Number) else None
    if value is not None:
        place = min(len(VIRIDIS) - 1, max(0, int(value * len(VIRIDIS))))
        text.stylize(f"{'white' if value < 0.5 else 'black'} on {VIRIDIS[place]}")
    return text
