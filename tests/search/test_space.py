from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.errors import LongRopeError
from longrope.rope import Rope, Scaling
from longrope.search.space import START_TOKENS, Space

ROPE = Rope(dim=8, base=10000.0, original_length=256)
FACTORS = st.lists(st.floats(0.01, 100), min_size=4, max_size=4)


@given(FACTORS, st.floats(1.0, 2.0))
def test_inside_keeps_the_bounds_and_does_not_decrease(factors: list[float], ceiling: float) -> None:
    space = Space(ROPE, 2048, ceiling=ceiling)
    inside = space.inside(Scaling(factors))
    assert inside.shape == (4,)
    assert inside.min() >= 1
    assert inside.max() <= space.largest == 8 * ceiling
    assert (np.diff(inside) >= 0).all()
    assert np.array_equal(space.inside(Scaling(inside.tolist())), inside)


@given(st.lists(st.floats(1, 10), min_size=4, max_size=4).map(sorted))
def test_what_is_inside_stays(factors: list[float]) -> None:
    assert Space(ROPE, 2048).inside(Scaling(factors)).tolist() == factors


def test_a_candidate_carries_what_the_space_says() -> None:
    space = Space(ROPE, 2048, attention_factor=1.1, start_tokens=START_TOKENS)
    found = space.scaling([1, 2, 3, 4], 5)
    assert found == Scaling([1, 2, 3, 4], attention_factor=1.1, start_tokens=12, scheme="searched", length=2048)
    assert Space(ROPE, 2048).scaling([1, 1, 1, 1]).start_tokens == 0
    assert (space.pairs, space.largest) == (4, 10.0)


def test_the_papers_start_tokens() -> None:
    assert START_TOKENS == (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)


def test_what_is_no_space() -> None:
    with pytest.raises(LongRopeError, match=r"length = 255 is below .* 256"):
        Space(ROPE, 255)
    with pytest.raises(LongRopeError, match="start_tokens is empty"):
        Space(ROPE, 2048, start_tokens=())
    with pytest.raises(LongRopeError, match=r"3 factors.* 4 pairs"):
        Space(ROPE, 2048).inside(Scaling([1, 2, 3]))
