"""Is one better than another? Paired differences over documents, with a sign test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """How one row compares with another on the same documents.

    Args:
        percent: of perplexity above the other's (below 0: better).
        standard_error: of it, over documents (NaN for a single one).
        wins: documents on which it is better.
        losses: documents on which it is worse.
        p: how likely so uneven a count is if neither is better: the two-sided sign test.
    """

    percent: float
    standard_error: float
    wins: int
    losses: int
    p: float


def mean_error(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The mean of some values, and its standard error: NaN for a single one.

    >>> mean_error([1.0, 3.0])
    (2.0, 1.0)
    """
    each = np.asarray(values, dtype=np.float64)
    return float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else math.nan


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """From the mean losses of the same documents, ``(documents,)`` each, in nats.

    >>> paired([2.0, 2.1, 1.9], [2.1, 2.2, 2.0])
    Difference(percent=-9.516..., standard_error=0.0..., wins=3, losses=0, p=0.25)
    """
    each = np.asarray(ours) - np.asarray(theirs)
    mean, error = mean_error(each)
    ratio = float(np.exp(mean))
    wins, losses = int((each < 0).sum()), int((each > 0).sum())
    return Difference(100 * (ratio - 1), 100 * ratio * error, wins, losses, sign_test(wins, losses))


def sign_test(wins: int, losses: int) -> float:
    """The probability of a count at least so uneven in tosses of a fair coin; ties are left out beforehand.

    >>> sign_test(8, 0), sign_test(3, 3)
    (0.0078125, 1.0)
    """
    tosses = wins + losses
    tail = sum(math.comb(tosses, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**tosses)
