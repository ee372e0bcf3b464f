"""A figure: what it shows, its numbers as a table, and a chart of them. Page and terminal show the same cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import altair as alt

MISSING = "–"


@dataclass(frozen=True)
class Number:
    """A value with its standard error; None is one that is not finite or was not measured."""

    value: float | None
    error: float | None = None


@dataclass(frozen=True)
class Column:
    """A heading, and how the column's cells are written."""

    head: str
    write: Callable[[Any], str] = str

    @property
    def numeric(self) -> bool:
        """Whether it is aligned to the right."""
        return self.write is not str


@dataclass(frozen=True)
class Figure:
    """One thing to show.

    Args:
        key: letters and hyphens, unique: of the file and of the element in the page.
        section: of `SECTIONS`, where it is shown.
        title: of figure and table.
        says: what the numbers mean and how they can mislead, in short sentences.
        columns: of the table.
        rows: a cell a column.
        chart: None if the table is all.
        terminal: what the terminal adds: the cells coloured, a sparkline along every row or column, bars, or nothing.
    """

    key: str
    section: str
    title: str
    says: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Any]]
    chart: alt.TopLevelMixin | None = None
    terminal: Literal["heat", "rows", "columns", "bars", "table"] = "table"

    def cells(self) -> list[list[str]]:
        """The table as it is written."""
        return [[column.write(cell) for column, cell in zip(self.columns, row, strict=True)] for row in self.rows]


def fixed(digits: int, *, sign: str = "", unit: str = "", times: float = 1) -> Callable[[Any], str]:
    """What writes a `Number`, or a plain one, with its standard error.

    >>> fixed(2)(Number(1234.567, 0.5)), fixed(1, sign="+", unit="%")(7.03), fixed(0)(None)
    ('1,234.57 ± 0.50', '+7.0%', '–')
    """

    def one(value: float, sign: str) -> str:
        value *= times
        return f"{value:{sign},.{digits}f}" if abs(value) < 10**6 else f"{value:{sign}.3g}"

    def write(cell: Any) -> str:
        number = cell if isinstance(cell, Number) else Number(cell)
        if number.value is None:
            return MISSING
        error = "" if number.error is None else f" ± {one(number.error, '')}{unit}"
        return f"{one(number.value, sign)}{unit}{error}"

    return write


whole, nats, plain = fixed(0), fixed(4), fixed(2)
percent, share = fixed(1, sign="+", unit="%"), fixed(1, unit="%", times=100)


def low_high(number: Number) -> dict[str, float]:
    """One standard error to either side, for the bars of a chart; above 0, for logarithmic axes."""
    if number.value is None or number.error is None:
        return {}
    return {"low": max(number.value - number.error, number.value / 10), "high": number.value + number.error}
