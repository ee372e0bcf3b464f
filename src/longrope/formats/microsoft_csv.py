"""Read the tables of factors in microsoft/LongRoPE: numbers separated by commas, without a header line."""

from __future__ import annotations

from pathlib import Path

from longrope.errors import LongRopeError
from longrope.formats.fields import numbers
from longrope.scaling import Scaling


def scaling_of_table(path: Path) -> Scaling:
    """Read the factors of a ``.csv`` file: one line with all factors for every layer, or one factor a line.

    A column with an odd number of values begins with n̂ (``dim_mono_n`` there). The table holds neither the model's
    geometry, nor a length, nor an attention factor (that code multiplies by ``su``).

    Raises:
        LongRopeError: The file is not such a table, or the layers have different factors.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise LongRopeError(f"{path} is not a table of factors: it is not text") from None
    rows = [_numbers(path, at, line) for at, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise LongRopeError(f"{path} is empty; a table of factors has a line of them for every layer")
    factors, start = rows[0], 0.0
    if all(len(row) == 1 for row in rows):
        factors = [row[0] for row in rows]
        if len(factors) % 2 and factors[0].is_integer():
            start, *factors = factors
    elif any(row != rows[0] for row in rows):
        layer = next(layer for layer, row in enumerate(rows) if row != rows[0])
        raise LongRopeError(
            f"{path}: the factors of layer {layer} differ from those of layer 0, and a model has one rope for all "
            "its layers; keep one line"
        )
    try:
        return Scaling(numbers(factors, "factors"), start_tokens=int(start))
    except LongRopeError as error:
        raise LongRopeError(f"{path}: {error}") from None


def _numbers(path: Path, at: int, line: str) -> list[float]:
    try:
        return [float(value) for value in line.split(",")]
    except ValueError:
        raise LongRopeError(f"{path}, line {at}: {line[:40]!r} is not a list of numbers separated by commas") from None
