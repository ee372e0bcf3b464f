"""Reading one field of a file that others wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from longrope.errors import LongRopeError


def number(fields: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A field that holds a finite number above 0; the default if it is absent or null.

    Raises:
        LongRopeError: if it holds something else, or is absent and has no default.
    """
    value = fields.get(name)
    value = default if value is None else value
    if value is None:
        raise LongRopeError(f"{name} is missing; add it")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise LongRopeError(f"{name} = {value!r} must be a finite number above 0")
    return value


def count(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """The same of a whole number.

    Raises:
        LongRopeError: as `number`, or if it has a fraction.
    """
    value = number(fields, name, default)
    if value != int(value):
        raise LongRopeError(f"{name} = {value!r} must be a whole number")
    return int(value)
