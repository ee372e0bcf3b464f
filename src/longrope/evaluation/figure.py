"""A figure as plain data: a table, and optionally a chart of it. The report draws it; page and terminal show it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

MISSING, NOT_FINITE = "–", "not finite"
AxisKind = Literal["length", "position", "pair", "passes", "perplexity", "factor", "loss"]
ChartRecords = list[dict[str, Any]]


@dataclass(frozen=True)
class Number:
    """A value with its standard error or its interval.

    Args:
        value: Measured value; None if it was not measured or is not finite.
        error: Standard error of the value; None without one.
        finite: Whether the measured value is finite.
        interval: Ends of the 95% interval of a rate; None without one.
    """

    value: float | None
    error: float | None = None
    finite: bool = True
    interval: tuple[float, float] | None = None

    @classmethod
    def of(
        cls, value: float | None, error: float | None = None, *, interval: tuple[float, float] | None = None
    ) -> Number:
        """Return the number of a value that may be None, NaN or infinite."""
        if value is None or not math.isfinite(value):
            return cls(None, finite=value is None)
        error = error if error is not None and math.isfinite(error) else None
        return cls(
            value, error, interval=interval if interval is not None and all(map(math.isfinite, interval)) else None
        )


@dataclass(frozen=True)
class Column:
    """The heading of a table's column, and the function that writes its values."""

    head: str
    write: Callable[[Any], str] = str

    @property
    def numeric(self) -> bool:
        """Whether the column is aligned to the right."""
        return self.write is not str


@dataclass(frozen=True)
class Axis:
    """An axis of a chart of curves.

    Args:
        kind: Quantity on the axis, which decides its scale and its numbers.
        title: Title with the unit.
        ticks: Values with a tick; chosen by the chart if empty.
    """

    kind: AxisKind
    title: str
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Lines:
    """Curves by name.

    Args:
        records: Points with ``name``, ``x``, ``y``, ``tip`` and, for an error bar, ``low`` and ``high``.
        x: Horizontal axis.
        y: Vertical axis.
        marks: Names of dashed vertical lines by their place on the horizontal axis.
        step: Whether a value holds until the next point.
    """

    records: ChartRecords
    x: Axis
    y: Axis
    marks: Mapping[float, str] = field(default_factory=dict)
    step: bool = False


@dataclass(frozen=True)
class Bars:
    """A horizontal bar for every name.

    Args:
        records: Bars with ``name``, ``value``, ``label`` and ``tip``.
        title: Title of the axis of values.
    """

    records: ChartRecords
    title: str


@dataclass(frozen=True)
class Heat:
    """A heat map for every name.

    Args:
        records: Fields with ``name``, ``x``, ``y``, ``value`` (0 to 1, or None), ``label`` and ``tip``.
        y_title: Title of the vertical axis.
        legend: Title of the colour scale.
    """

    records: ChartRecords
    y_title: str
    legend: str


Chart = Lines | Bars | Heat


@dataclass(frozen=True)
class Figure:
    """A table with an explanation, and optionally a chart.

    Args:
        key: Name of the file and of the element in the page; letters and hyphens, unique.
        section: Key of the report's section.
        title: Title of figure and table.
        says: What the numbers mean and how they can mislead, in short sentences.
        columns: Columns of the table.
        rows: Values of the table, one a column.
        chart: Chart; None shows the table alone.
        terminal: What the terminal adds to the table: coloured fields, a sparkline along each row or column, or bars.
    """

    key: str
    section: Literal["works", "cost", "better", "found", "origin"]
    title: str
    says: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Any]]
    chart: Chart | None = None
    terminal: Literal["heat", "rows", "columns", "bars", "table"] = "table"

    def written(self) -> list[list[str]]:
        """Return the table's values as text."""
        return [[column.write(value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows]


def fixed(digits: int, *, sign: str = "", unit: str = "", times: float = 1) -> Callable[[Any], str]:
    """Return a function that writes a `Number` with its interval or its standard error, or a plain value.

    >>> fixed(2)(Number(1234.567, 0.5)), fixed(1, sign="+", unit="%")(7.03), fixed(0)(None)
    ('1,234.57 ± 0.50', '+7.0%', '–')
    >>> fixed(1, unit="%", times=100)(Number(0.95, interval=(0.764, 0.991)))
    '95.0% (76.4–99.1%)'
    >>> fixed(1)(float("nan"))
    'not finite'
    """

    def digits_of(value: float, sign: str) -> str:
        value *= times
        return f"{value:{sign},.{digits}f}" if abs(value) < 10**6 else f"{value:{sign}.3g}"

    def write(value: Any) -> str:
        number = value if isinstance(value, Number) else Number.of(value)
        if number.value is None:
            return MISSING if number.finite else NOT_FINITE
        text = f"{digits_of(number.value, sign)}{unit}"
        if number.interval is not None:
            low, high = (digits_of(end, sign) for end in number.interval)
            return f"{text} ({low}–{high}{unit})"
        return text if number.error is None else f"{text} ± {digits_of(number.error, '')}{unit}"

    return write


integer, nats, plain = fixed(0), fixed(4), fixed(2)
percent, share = fixed(1, sign="+", unit="%"), fixed(1, unit="%", times=100)


def error_bar(number: Number) -> dict[str, float]:
    """Return the ends of one standard error to either side, above 0 for logarithmic axes."""
    if number.value is None or number.error is None:
        return {}
    return {"low": max(number.value - number.error, number.value / 10), "high": number.value + number.error}
