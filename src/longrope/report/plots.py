"""Factor curves and perplexity by length as picture files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longrope.report.charts import lengths_axis, lines, log_axis
from longrope.report.found import factor_chart
from longrope.report.looks import looks
from longrope.report.svg import save
from longrope.report.tables import Number, low_high, plain
from longrope.rope import Rope, Scaling

if TYPE_CHECKING:
    from longrope.evaluation.perplexity import Perplexity


def plot_factors(rope: Rope, scalings: Mapping[str, Scaling], path: Path) -> None:
    """Factors by rotary pair, with the critical pair marked.

    Args:
        rope: the model's geometry.
        scalings: by name.
        path: of the picture; .svg or .png decides the format.
    """
    chart = factor_chart(rope, scalings, looks(scalings))
    save(chart.properties(title="Rescale factors by rotary pair"), path)


def plot_perplexity(table: Mapping[str, Sequence[Perplexity]], original_length: int, path: Path) -> None:
    """Perplexity by length with its standard error, both axes logarithmic.

    Args:
        table: of `compare`.
        original_length: L0, marked by a line.
        path: of the picture; .svg or .png decides the format.
    """
    records = []
    for name, row in table.items():
        for cell in row:
            error = cell.standard_error if math.isfinite(cell.standard_error) else None
            number = Number(cell.perplexity, error)
            if math.isfinite(cell.perplexity):
                tip = f"{name}, {cell.length:,} tokens: {plain(number)}"
                records.append({"name": name, "x": cell.length, "y": cell.perplexity, "tip": tip} | low_high(number))
    lengths = sorted({cell.length for row in table.values() for cell in row})
    y, marks = log_axis("perplexity on test documents"), {float(original_length): "L0"}
    chart = lines(records, looks(table), lengths_axis(lengths), y, marks=marks)
    save(chart.properties(title="Perplexity by length"), path)
