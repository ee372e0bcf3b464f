"""Racing: evaluate candidates on one sample after another, and drop those that are clearly worse than the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

# one-sided 1% points of Student's t for 1, 2, 3 … degrees of freedom; beyond the table the last is on the safe side
T_QUANTILES = (31.82, 6.965, 4.541, 3.747, 3.365, 3.143, 2.998, 2.896, 2.821, 2.764, 2.718, 2.681, 2.650, 2.624, 2.602)


def clearly_worse(differences: Sequence[float]) -> bool:
    """Return whether a candidate is worse by a t-test at 1%.

    If the differences are drawn from a normal law, one such test drops a better candidate with a probability of at
    most 1%. A single sample decides nothing. A loss that is not finite decides at once.

    >>> clearly_worse([0.10, 0.11, 0.12]), clearly_worse([0.1, -0.1, 0.2]), clearly_worse([5.0])
    (True, False, False)

    Args:
        differences: Loss of the candidate less that of the best one, for each sample.
    """
    n = len(differences)
    if any(not math.isfinite(difference) for difference in differences):
        return True
    if n < 2:
        return False
    mean = sum(differences) / n
    error = math.sqrt(sum((difference - mean) ** 2 for difference in differences) / (n - 1) / n)
    return mean > T_QUANTILES[min(n - 2, len(T_QUANTILES) - 1)] * error
