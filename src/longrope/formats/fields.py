"""Read and check single fields of files that other tools wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longrope.errors import LongRopeError
from longrope.rope import Rope

WIDEST = 65536


def number(fields: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """Return a field's number, from 1e-15 to 1e15; the default if the field is absent or null.

    Raises:
        LongRopeError: The field holds something else, or is absent and has no default.
    """
    value = fields.get(name)
    value = default if value is None else value
    if value is None:
        raise LongRopeError(f"{name} is missing; add it")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-15 < value < 1e15:
        raise LongRopeError(f"{name} = {value!r} must be a number above 0 (from 1e-15 to 1e15)")
    return value


def count(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Return a field's integer, as `number` does.

    Raises:
        LongRopeError: `number` refuses the field, or its number has a fraction.
    """
    value = number(fields, name, default)
    if value != int(value):
        raise LongRopeError(f"{name} = {value!r} must be a whole number")
    return int(value)


def numbers(values: Sequence[Any], name: str) -> list[float]:
    """Return the numbers of a list, each checked by `number`.

    Raises:
        LongRopeError: A value is refused; the message names its index.
    """
    return [number({f"{name}[{i}]": value}, f"{name}[{i}]") for i, value in enumerate(values)]


def geometry(dim: float, base: float, original_length: int) -> Rope:
    """Return the rope of a file's numbers; ``dim`` is rounded down to an integer.

    Raises:
        LongRopeError: The numbers describe a rope that no model can have.
    """
    if dim > WIDEST:
        raise LongRopeError(f"{dim:g} rotated dimensions are more than any model has; the file is damaged")
    return Rope(dim=int(dim), base=base, original_length=original_length)
