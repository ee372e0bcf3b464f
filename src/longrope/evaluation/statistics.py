"""Standard errors over documents, a sign test, and the interval of a rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z_95 = 1.959963984540054  # the normal distribution has 95% of its mass within this many standard deviations


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


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """Return the 95% interval of a rate (Wilson 1927, equation 4), which stays within 0 and 1.

    A score between 0 and 1, such as three answers of four, counts as that share of a success; the interval is then
    wider than necessary. It is NaN where the number of successes is.

    Args:
        successes: Number of successes, or sum of the scores.
        trials: Number of trials, at least 1.

    >>> low, high = wilson_interval(50, 50)
    >>> round(low, 3), high
    (0.929, 1.0)
    """
    if math.isnan(successes):
        return math.nan, math.nan
    rate, spread = successes / trials, Z_95**2 / trials
    center, margin = rate + spread / 2, math.sqrt(rate * (1 - rate) * spread + spread**2 / 4)
    low = 0.0 if successes == 0 else (center - margin) / (1 + spread)
    return low, 1.0 if successes == trials else (center + margin) / (1 + spread)


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
