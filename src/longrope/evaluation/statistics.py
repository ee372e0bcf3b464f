"""Standard errors over documents, and a sign test."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def mean_error(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return the mean of some values and its standard error, which is NaN for one value.

    Both are NaN if a value is not finite.

    >>> mean_error([1.0, 3.0])
    (2.0, 1.0)
    """
    samples = np.asarray(values, dtype=np.float64)
    if not np.isfinite(samples).all():
        return math.nan, math.nan
    error = float(samples.std(ddof=1) / len(samples) ** 0.5) if len(samples) > 1 else math.nan
    return float(samples.mean()), error


def sign_test(wins: int, losses: int) -> float:
    """Return the probability that tosses of a fair coin are at least as one-sided as these counts.

    Args:
        wins: Number of heads. Ties are not counted.
        losses: Number of tails.

    >>> sign_test(8, 0), sign_test(3, 3)
    (0.0078125, 1.0)
    """
    tosses = wins + losses
    tail = sum(math.comb(tosses, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**tosses)
