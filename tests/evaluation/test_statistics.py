from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.evaluation.records import Difference, document_perplexity, paired_difference
from longrope.evaluation.statistics import Z_95, rate_interval, sign_test, student_t, wilson_interval


def paired(losses: Sequence[float], reference: Sequence[float]) -> Difference:
    ours, others = (document_perplexity(values, 64) for values in (losses, reference))
    return paired_difference(ours, others, against="yarn")


LOSSES = st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), min_size=2, max_size=9)


@pytest.mark.parametrize("tosses", range(1, 9))
def test_the_sign_test_counts_all_tosses_of_a_fair_coin(tosses: int) -> None:
    for wins in range(tosses + 1):
        uneven = abs(2 * wins - tosses)
        all_tosses = list(itertools.product((0, 1), repeat=tosses))
        as_uneven = sum(abs(2 * sum(one) - tosses) >= uneven for one in all_tosses)
        assert sign_test(wins, tosses - wins) == pytest.approx(as_uneven / len(all_tosses))


@given(LOSSES)
def test_the_other_way_round(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*pairs, strict=True)
    one, other = paired(ours, theirs), paired(theirs, ours)
    assert (one.wins, one.losses, one.p) == (other.losses, other.wins, other.p)
    assert (1 + one.percent / 100) * (1 + other.percent / 100) == pytest.approx(1)


@given(LOSSES, st.floats(-2, 2))
def test_what_all_documents_share_is_not_in_the_error(pairs: list[tuple[float, float]], shift: float) -> None:
    """Unlike the errors of the two means, the paired one does not see how unlike the documents are."""
    ours = np.array([pair[0] for pair in pairs])
    found = paired(list(ours + shift), list(ours))
    assert found.percent == pytest.approx(100 * np.expm1(shift), rel=1e-6, abs=1e-6)
    assert found.standard_error == pytest.approx(0, abs=1e-6)


def test_a_single_document_has_no_error() -> None:
    found = paired([1.0], [2.0])
    assert np.isnan(found.standard_error)
    assert (found.wins, found.losses, found.p) == (1, 0, 1.0)


@pytest.mark.parametrize("trials", [1, 5, 50, 500])
def test_the_interval_holds_the_rates_that_a_normal_test_does_not_reject(trials: int) -> None:
    """Each border is the rate whose own standard error lies 1.96 times between it and the observed rate."""
    for successes in range(trials + 1):
        low, high = wilson_interval(successes, trials)
        assert 0 <= low <= successes / trials <= high <= 1
        for border in {low, high} - {0.0, 1.0}:
            distance = abs(successes / trials - border)
            assert distance == pytest.approx(1.959964 * math.sqrt(border * (1 - border) / trials), rel=1e-6)
        assert (low == 0, high == 1) == (successes == 0, successes == trials)
        assert (1 - high, 1 - low) == pytest.approx(wilson_interval(trials - successes, trials))


def test_the_interval_of_a_broken_score_is_not_a_number() -> None:
    assert all(map(math.isnan, wilson_interval(math.nan, 4)))


def test_students_t_falls_to_the_normal_distribution() -> None:
    values = [student_t(freedom) for freedom in range(60)]
    assert values == sorted(values, reverse=True)
    assert [student_t(30), student_t(60), student_t(10**6)] == pytest.approx([2.0423, 2.0003, Z_95], abs=3e-4)


RATES = st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=12)


@given(RATES, st.integers(2, 9))
def test_equal_questions_of_a_text_say_no_more_than_one(scores: list[float], copies: int) -> None:
    """Repeating every question of a text never makes the interval narrower than that of one question a text.

    Equal scores do not show how alike the questions of a text are, so only some of that is taken into account.
    """
    texts = list(range(len(scores)))
    alone, low_high = rate_interval(scores), rate_interval(scores * copies, texts * copies)
    assert rate_interval(scores, texts) == alone == wilson_interval(sum(scores), len(scores))
    if len(set(scores)) > 1:
        assert low_high[0] <= alone[0] + 1e-9
        assert low_high[1] >= alone[1] - 1e-9


def test_the_interval_of_questions_that_share_texts_holds_the_true_rate() -> None:
    """Six texts with ten questions, some texts harder than others: Wilson's interval of 60 trials is too narrow."""
    rng, held = np.random.default_rng(0), {"shared": 0, "alone": 0}
    for _ in range(400):
        rates = 1 / (1 + np.exp(-rng.normal(0, 1.5, size=6)))  # 50% in the mean of all texts
        scores = (rng.random((10, 6)) < rates).astype(float).ravel().tolist()
        shared, alone = rate_interval(scores, list(range(6)) * 10), rate_interval(scores)
        held["shared"] += shared[0] <= 0.5 <= shared[1]
        held["alone"] += alone[0] <= 0.5 <= alone[1]
    assert held["shared"] >= 0.93 * 400
    assert held["alone"] < 0.75 * 400


def test_a_few_texts_with_all_answers_right_are_no_proof() -> None:
    """Of 80%: three texts with fifty questions each are not enough, ten with five are."""
    assert rate_interval([1.0] * 150, [0, 1, 2] * 50)[0] < 0.6
    assert rate_interval([1.0] * 40, [0, 1, 2, 3] * 10)[0] < 0.75
    assert rate_interval([1.0] * 50, list(range(10)) * 5)[0] > 0.85
