"""The tables of factors in microsoft/LongRoPE: numbers by commas, without a head."""

from __future__ import annotations

from pathlib import Path

from longrope.errors import LongRopeError
from longrope.formats.fields import numbers
from longrope.scaling import Scaling


def scaling_of_table(path: Path) -> Scaling:
    """The factors of a ``.csv``: a line of them for every layer, or one a line.

    A column of an odd number of values begins with n̂ (there, ``dim_mono_n``). The table holds neither the model's
    geometry, nor a length, nor an attention factor (that code multiplies by ``su``).

    Raises:
        LongRopeError: if it is no such table, or the layers differ.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise LongRopeError(f"{path} is no table of factors: it is no text") from None
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
        return [float(part) for part in line.split(",")]
    except ValueError:
        raise LongRopeError(f"{path}, line {at}: {line[:40]!r} is no list of numbers by commas") from None
