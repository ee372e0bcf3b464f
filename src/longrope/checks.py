"""Checks of numbers that several types share."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from longrope.errors import LongRopeError

MOST = 2**53  # the whole numbers that a float tells apart


def positive(name: str, value: Any) -> float:
    """A finite number above 0, or an error that names it."""
    numeric = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    try:
        number = float(value) if numeric else 0.0
    except OverflowError:
        number = math.inf
    if not sys.float_info.min <= number < math.inf:  # below, 1 / number is infinite
        raise LongRopeError(f"{name} = {value!r} must be a finite number above 0")
    return number


def whole(name: str, value: Any, least: int) -> int:
    """A whole number of at least ``least``, or an error that names it."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= MOST:
        most = ", 2^53 at most" if isinstance(value, int) and value > MOST else ""
        raise LongRopeError(f"{name} = {value!r} must be a whole number, {least} or more{most}")
    return int(value)
