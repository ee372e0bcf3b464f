from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longrope.errors import LongRopeError
from longrope.search.budget import Budget, Stop, too_small

FIELDS = pytest.mark.parametrize("field", ["tokens", "seconds", "patience"])


@FIELDS
@example(1)
@example(0.5)
@example(0)
@example(math.nan)
@example(math.inf)
@given(st.floats() | st.integers())
def test_a_budget_is_a_finite_number_above_0(field: str, value: float) -> None:
    if 0 < value < math.inf:
        assert getattr(Budget(**{field: value}), field) == value
        return
    with pytest.raises(LongRopeError) as error:
        Budget(**{field: value})
    assert str(error.value) == f"budget {field} = {value} allows nothing. Use a number above 0."


@FIELDS
def test_text_is_not_a_budget(field: str) -> None:
    with pytest.raises(LongRopeError, match=f"budget {field} = '2m' allows nothing"):
        Budget(**{field: "2m"})


def test_without_limits_nothing_is_limited() -> None:
    assert vars(Budget()) == {"tokens": None, "seconds": None, "patience": None}


def test_too_small_a_budget_says_what_one_step_costs() -> None:
    Budget(37).check_step(37)
    Budget().check_step(37)
    with pytest.raises(LongRopeError, match=r"budget = 36: one step of this search takes 37 token-evaluations"):
        Budget(36).check_step(37)
    error = too_small(30, 37)
    assert isinstance(error, LongRopeError)
    assert str(error).startswith("budget = 30: one step of this search takes 37 token-evaluations. Raise it, or")
    assert str(Stop("the time is spent")) == "the time is spent"
