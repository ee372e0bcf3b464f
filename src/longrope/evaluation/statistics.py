"""Standard errors over documents, Student's t, a sign test, and the interval of a rate."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

Z_95 = 1.959963984540054  # the normal distribution has 95% of its mass within this many standard deviations
ALIKE = 0.1  # least correlation of the answers to questions of one text; benchmarks/smollm2.py table measures it
# standard errors within which 95% of Student's t lies, by the degrees of freedom
T_95 = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


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


def wilson_interval(successes: float, trials: float) -> tuple[float, float]:
    """Return the 95% interval of a rate (Wilson 1927, equation 4), which stays within 0 and 1.

    A score between 0 and 1, such as three answers of four, counts as that share of a success; the interval is then
    wider than necessary. It is NaN where the number of successes is.

    Args:
        successes: Number of successes, or sum of the scores.
        trials: Number of trials, above 0.

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


def student_t(freedom: int) -> float:
    """Return the number of standard errors within which 95% of the mass of Student's t lies; infinity for 0 degrees.

    Above ten degrees of freedom it is the first terms of its expansion (Cornish and Fisher), exact to 0.003.

    >>> student_t(4), round(student_t(20), 3)
    (2.776, 2.086)
    """
    if freedom < len(T_95):
        return T_95[max(freedom, 0)]
    first, second = (Z_95**3 + Z_95) / 4, (5 * Z_95**5 + 16 * Z_95**3 + 3 * Z_95) / 96
    return Z_95 + first / freedom + second / freedom**2


def rate_interval(scores: Sequence[float], texts: Sequence[Hashable] = ()) -> tuple[float, float]:
    """Return the 95% interval of a mean score whose questions may share texts.

    It is Wilson's interval with the effective number of trials of Korn and Graubard (1998): questions of one text are
    alike, so the number is divided by how much more the means of texts vary than those of independent questions, and by
    the uncertainty of that from few texts. The answers of a text are taken to have a correlation of `ALIKE` at least,
    which equal scores do not show. One text alone says nothing about others: the interval is then 0 to 1.

    Args:
        scores: Score of each question, from 0 to 1.
        texts: Text of each question; none if each has its own.

    >>> low, high = rate_interval([1.0] * 20, [0, 1, 2, 3, 4] * 4)  # twenty right answers about five texts
    >>> round(low, 3), high
    (0.695, 1.0)
    >>> rate_interval([1.0] * 20, [0] * 20)
    (0.0, 1.0)
    """
    trials, total = len(scores), sum(scores)
    sums: dict[Hashable, list[float]] = defaultdict(list)
    for text, score in zip(texts, scores, strict=bool(texts)):
        sums[text].append(score)
    if math.isnan(total) or len(sums) in (0, trials):
        return wilson_interval(total, trials)
    if len(sums) == 1:
        return 0.0, 1.0
    rate = total / trials
    alone = rate * (1 - rate) / trials  # variance of the rate if all questions were independent
    spread = sum((sum(group) - rate * len(group)) ** 2 for group in sums.values()) / trials**2
    spread *= len(sums) / (len(sums) - 1)
    effective = trials / max(1 + ALIKE * (trials / len(sums) - 1), spread / alone if alone > 0 else 1.0)
    effective *= (student_t(trials - 1) / student_t(len(sums) - 1)) ** 2
    return wilson_interval(rate * effective, effective)


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
