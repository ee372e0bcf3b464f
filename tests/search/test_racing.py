from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.search.racing import clearly_worse


def quantile(freedom: int, tail: float = 0.01) -> float:
    """Where Student's t has that much to its right: the density integrated by Simpson's rule, and bisection.

    With t = tan(a)·sqrt(n) the density is proportional to cos(a)^(n-1), so the tail is a ratio of integrals.
    """

    def integral(low: float, high: float) -> float:
        x = np.linspace(low, high, 4001)
        weights = np.array([1, *[4, 2] * 1999, 4, 1]) * (high - low) / 12000
        return float(weights @ np.cos(x) ** (freedom - 1))

    whole, low, high = integral(-math.pi / 2, math.pi / 2), 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if integral(middle, math.pi / 2) > tail * whole else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def with_statistic(n: int, t: float, rng: np.random.Generator) -> list[float]:
    """Differences whose t statistic is t."""
    noise = rng.normal(size=n)
    noise -= noise.mean()
    return (noise + t * noise.std(ddof=1) / math.sqrt(n)).tolist()


def test_the_reference_knows_the_tables() -> None:
    for freedom, value in [(1, 31.821), (2, 6.965), (10, 2.764), (30, 2.457), (120, 2.358)]:
        assert quantile(freedom) == pytest.approx(value, abs=6e-4)


@pytest.mark.parametrize("n", range(2, 17))
def test_it_is_the_one_sided_t_test(n: int) -> None:
    limit, rng = quantile(n - 1), np.random.default_rng(n)
    for _ in range(5):
        assert clearly_worse(with_statistic(n, limit * 1.001, rng))
        assert not clearly_worse(with_statistic(n, limit * 0.999, rng))
        assert not clearly_worse(with_statistic(n, -limit * 2, rng))


@pytest.mark.parametrize("n", [17, 20, 60, 1000])
def test_beyond_the_table_it_is_at_most_as_eager_as_the_t_test(n: int) -> None:
    """A better candidate is dropped with at most 1%, however many documents there are."""
    limit, rng = quantile(n - 1), np.random.default_rng(n)
    assert not clearly_worse(with_statistic(n, limit * 0.999, rng))
    assert clearly_worse(with_statistic(n, limit * 1.2, rng))


@pytest.mark.parametrize("n", [2, 3, 5, 10, 16])
def test_the_rate_of_errors_is_one_in_a_hundred(n: int) -> None:
    """Of 10,000 candidates that are as good as the best, one in a hundred is dropped; of better ones, fewer."""
    rng, trials = np.random.default_rng(n), 10_000
    noise = rng.normal(size=(trials, n))
    dropped = sum(map(clearly_worse, noise.tolist())) / trials
    better = sum(map(clearly_worse, (noise - 0.3).tolist())) / trials
    worse = sum(map(clearly_worse, (noise + 3).tolist())) / trials
    assert abs(dropped - 0.01) < 4 * math.sqrt(0.01 * 0.99 / trials)
    assert better < dropped < worse


@given(st.floats(-1e6, 1e6))
def test_one_document_says_nothing(difference: float) -> None:
    assert not clearly_worse([difference])
    assert not clearly_worse([])


@given(st.lists(st.floats(-10, 10), max_size=5), st.sampled_from([math.inf, math.nan]), st.integers(0, 5))
def test_what_is_not_finite_says_all(differences: list[float], bad: float, place: int) -> None:
    assert clearly_worse([*differences[:place], bad, *differences[place:]])


@given(st.integers(2, 40), st.floats(-1, 0))
def test_who_is_as_good_or_better_on_every_document_stays(n: int, difference: float) -> None:
    assert not clearly_worse([difference] * n)
    assert not clearly_worse([0.0] * n)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=10), st.sampled_from([0.25, 4.0, 1024.0]))
def test_the_unit_does_not_matter(differences: list[int], unit: float) -> None:
    assert clearly_worse(differences) == clearly_worse([one * unit for one in differences])
