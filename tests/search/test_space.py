from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.search.parametrizations import PARAMETRIZATIONS
from longrope.search.space import START_TOKENS, Space

ROPE = Rope(dim=8, base=10000.0, original_length=256)
FACTORS = st.lists(st.floats(0.01, 100), min_size=4, max_size=4)
EVERY = pytest.mark.parametrize("form", PARAMETRIZATIONS)
PRODUCTS = pytest.mark.parametrize("form", sorted(set(PARAMETRIZATIONS) - {"yarn"}))  # smooth, and also after a stage


def inner(space: Space, part: float = 0.4) -> np.ndarray:
    """Coordinates well inside the bounds, where no factor is at its limit."""
    lower, upper = space.bounds
    x = lower + part * (upper - lower) * (1 + 0.1 * np.sin(np.arange(len(lower))))
    if space.parametrization in ("monotone", "spline"):
        x[: len(space.coordinate_map.lower)] /= 3
    if space.parametrization == "ramp":
        x[:2] = -0.5, 6.25
    if space.parametrization == "critical":
        x[:5] = 2.6, *np.sort(x[1:5])
    return x


@given(FACTORS, st.floats(1.0, 2.0))
def test_inside_keeps_the_bounds(factors: list[float], ceiling: float) -> None:
    space = Space(ROPE, 2048, ceiling=ceiling)
    inside = space.clip(Scaling(factors))
    assert inside.shape == (4,)
    assert inside.min() >= 1
    assert inside.max() <= space.largest == 8 * ceiling
    assert np.array_equal(space.clip(Scaling(inside.tolist())), inside)


@given(st.lists(st.floats(1, 10), min_size=4, max_size=4))
def test_what_is_inside_stays(factors: list[float]) -> None:
    assert Space(ROPE, 2048).clip(Scaling(factors)).tolist() == factors


def test_a_candidate_carries_what_the_space_says() -> None:
    space = Space(ROPE, 2048, attention_factor=1.1, start_tokens=START_TOKENS)
    found = space.scaling([1, 2, 3, 4], 5)
    assert found == Scaling([1, 2, 3, 4], attention_factor=1.1, start_tokens=12, scheme="searched", length=2048)
    assert space.scaling([1, 2, 3, 4], attention=1.3).attention_factor == 1.3
    assert Space(ROPE, 2048).scaling([1, 1, 1, 1]).start_tokens == 0
    assert (space.pairs, space.largest) == (4, 10.0)


def test_the_papers_start_tokens() -> None:
    assert START_TOKENS == (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)


@given(st.lists(st.floats(1, 10), min_size=4, max_size=4))
def test_free_factors_come_back_from_their_coordinates(factors: list[float]) -> None:
    space = Space(ROPE, 2048, attention_factor=1.2)
    found = space.candidate(space.coordinates(Scaling(factors)))
    np.testing.assert_allclose(found.factors, factors, rtol=1e-12)
    assert (found.attention_factor, found.start_tokens, found.length) == (1.2, 0, 2048)


@EVERY
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("start_tokens", [(0,), (3,), (0, 4, 8)])
def test_candidates_come_back_from_their_coordinates(form: str, attention: bool, start_tokens: tuple[int, ...]) -> None:
    space = Space(ROPE, 2048, 1.1, attention, start_tokens, ceiling=2.0, parametrization=form)
    one = space.candidate(inner(space))
    again = space.candidate(space.coordinates(one))
    np.testing.assert_allclose(np.log(again.factors), np.log(one.factors), atol=0.1 if form == "ramp" else 0.02)
    assert again.attention_factor == pytest.approx(1.1)  # a search begins at the space's own
    assert again.start_tokens == start_tokens[0]


@EVERY
def test_coordinates_for_the_attention_factor_and_start_tokens_come_and_go(form: str) -> None:
    def count(attention: bool, start_tokens: tuple[int, ...]) -> int:
        space = Space(ROPE, 2048, 1.1, attention, start_tokens, parametrization=form)
        lower, upper = space.bounds
        assert lower.shape == upper.shape == space.unit.shape == space.coordinates(Scaling([2.0] * 4)).shape
        assert (lower <= upper).all()
        return len(lower)

    plain = count(False, (0,))
    assert count(False, (8,)) == plain
    assert count(True, (0,)) == count(False, (0, 8)) == plain + 1
    assert count(True, (0, 8, 9)) == plain + 2


@EVERY
def test_the_bounds_are_reached_and_not_passed(form: str) -> None:
    space = Space(ROPE, 2048, search_attention=True, start_tokens=(0, 2, 5), ceiling=2.0, parametrization=form)
    lowest, highest = map(space.candidate, space.bounds)
    assert (lowest.attention_factor, lowest.start_tokens) == (1.0, 0)
    assert highest.attention_factor == pytest.approx(1 + 0.2 * math.log(8))
    assert highest.start_tokens == 5
    assert min(lowest.factors) == 1.0
    assert max(highest.factors) <= 16 * (1 + 1e-12)


@EVERY
def test_the_spread_of_what_is_not_a_factor_is_its_whole_range(form: str) -> None:
    space = Space(ROPE, 2048, search_attention=True, start_tokens=(0, 2, 5), parametrization=form)
    lower, upper = space.bounds
    assert space.unit[-2:].tolist() == pytest.approx([math.log(1 + 0.2 * math.log(8)), 2.0])
    np.testing.assert_allclose(space.unit[-2:], (upper - lower)[-2:], rtol=1e-15)
    np.testing.assert_allclose(space.unit[:-2], space.coordinate_map.unit, rtol=1e-15)


def test_an_attention_factor_outside_the_usual_range_is_inside_its_own() -> None:
    for factor in (0.7, 3.0):
        space = Space(ROPE, 2048, attention_factor=factor, search_attention=True)
        lower, upper = space.bounds
        assert lower[-1] <= math.log(factor) <= upper[-1]
        assert space.candidate(space.coordinates(Scaling([1.0] * 4))).attention_factor == pytest.approx(factor)


@pytest.mark.parametrize("start", range(3))
@pytest.mark.parametrize("off", [-0.49, 0.0, 0.49])
def test_start_tokens_are_the_nearest_index(start: int, off: float) -> None:
    space = Space(ROPE, 2048, start_tokens=(1, 4, 9))
    x = np.append(np.zeros(4), np.clip(start + off, 0, 2))
    assert space.candidate(x).start_tokens == (1, 4, 9)[start]


@PRODUCTS
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("start_tokens", [(0,), (0, 4, 8)])
@pytest.mark.parametrize("part", [0.3, 0.5])
def test_the_slope_is_the_derivative(form: str, attention: bool, start_tokens: tuple[int, ...], part: float) -> None:
    """Of a quadratic of the log factors and the log attention factor, by central differences."""
    space = Space(ROPE, 2048, 1.1, attention, start_tokens, ceiling=2.0, parametrization=form)
    target = np.array([0.3, 0.1, 1.2, 2.0, 0.05])

    def off(scaling: Scaling) -> np.ndarray:
        return np.log([*scaling.factors, scaling.attention_factor]) - target

    x = inner(space, part)
    found = space.coordinate_gradient(x, 2 * off(space.candidate(x)))
    moves = 1e-6 * np.eye(len(x))[: len(x) - (len(start_tokens) > 1)]
    wanted = [(sum(off(space.candidate(x + d)) ** 2) - sum(off(space.candidate(x - d)) ** 2)) / 2e-6 for d in moves]
    assert found.shape == x.shape
    np.testing.assert_allclose(found[: len(wanted)], wanted, atol=1e-4)
    assert not found[len(wanted) :].any()
    assert np.abs(found).max() > 0.1


@EVERY
def test_a_start_of_another_rope_is_refused(form: str) -> None:
    space = Space(ROPE, 2048, parametrization=form)
    for act in (space.clip, space.coordinates):
        with pytest.raises(LongRopeError, match=r"3 factors.* 4 pairs"):
            act(Scaling([1, 2, 3]))


def test_what_is_no_space() -> None:
    with pytest.raises(LongRopeError, match=r"length = 255 is below .* 256"):
        Space(ROPE, 255)
    with pytest.raises(LongRopeError, match=r"^start_tokens = \(\): empty. Use \(0,\) to search without start tok"):
        Space(ROPE, 2048, start_tokens=())
    with pytest.raises(LongRopeError, match=r"the only possible factor is 1. Search a length above the original 256"):
        Space(ROPE, 256, ceiling=1.0)
    with pytest.raises(LongRopeError, match="parametrization = 'wavy' is unknown"):
        Space(ROPE, 2048, parametrization="wavy")


# 2x and a bit more, and not rising
BEFORE = Scaling([1.0, 1.6, 2.6, 2.4], attention_factor=1.3, start_tokens=4, length=512)


def after(form: str = "free", **fields: object) -> Space:
    """The space of a second stage, 4x."""
    return Space(ROPE, 2048, **{"ceiling": 2.0, "parametrization": form, "before": BEFORE, **fields})


def test_a_second_stage_is_relative_to_the_first() -> None:
    space = after()
    assert (space.scale, space.largest) == (4.0, 8.0)
    assert space.relative.original_length == 512
    np.testing.assert_allclose(space.relative.inv_freq, BEFORE.inv_freq(ROPE), rtol=1e-14)
    plain = Space(ROPE, 2048)
    assert plain.relative == ROPE
    assert plain.scale == 8.0
    assert space.largest_attention == plain.largest_attention  # of the whole scale, as the attention factor is


@PRODUCTS
@given(parts=st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_candidates_after_a_stage_multiply_its_factors(form: str, parts: list[float]) -> None:
    """By 1 … ceiling·s, wherever in the space; all else is the space's own."""
    space = after(form, attention_factor=1.1)
    lower, upper = space.bounds
    found = space.candidate(lower + np.resize(parts, len(lower)) * (upper - lower))
    times = np.divide(found.factors, BEFORE.factors)
    assert times.min() >= 1 - 1e-12
    assert times.max() <= 8 * (1 + 1e-12)
    assert (found.attention_factor, found.start_tokens, found.length) == (1.1, 0, 2048)


@given(FACTORS)
def test_inside_after_a_stage(factors: list[float]) -> None:
    inside = after().clip(Scaling(factors))
    np.testing.assert_allclose(inside, np.clip(np.divide(factors, BEFORE.factors), 1, 8), rtol=1e-12)
    whole = after().scaling(inside.tolist())
    np.testing.assert_allclose(after().clip(whole), inside, rtol=1e-12)


@given(st.lists(st.floats(1, 8), min_size=4, max_size=4))
def test_free_factors_after_a_stage_come_back_from_their_coordinates(times: list[float]) -> None:
    one = BEFORE.times(times)
    found = after().candidate(after().coordinates(one))
    np.testing.assert_allclose(found.factors, one.factors, rtol=1e-12)


@PRODUCTS
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("start_tokens", [(0,), (0, 4, 8)])
def test_candidates_after_a_stage_come_back_from_their_coordinates(
    form: str, attention: bool, start_tokens: tuple[int, ...]
) -> None:
    space = after(form, attention_factor=1.1, search_attention=attention, start_tokens=start_tokens)
    one = space.candidate(inner(space))
    again = space.candidate(space.coordinates(one))
    np.testing.assert_allclose(np.log(again.factors), np.log(one.factors), atol=0.1 if form == "ramp" else 0.02)
    assert again.attention_factor == pytest.approx(1.1)


@PRODUCTS
def test_the_factors_before_are_the_least(form: str) -> None:
    """The lowest candidate has them, and what lies below them is moved up to them."""
    space = after(form)
    lowest = space.candidate(space.bounds[0])
    if form != "critical":  # which never leaves the last pair below s
        np.testing.assert_allclose(lowest.factors, BEFORE.factors, rtol=1e-12)
    assert min(np.divide(space.candidate(space.coordinates(Scaling([0.1] * 4))).factors, BEFORE.factors)) >= 1 - 1e-12


@PRODUCTS
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("part", [0.3, 0.5])
def test_the_slope_after_a_stage_is_the_derivative(form: str, attention: bool, part: float) -> None:
    """Of a quadratic of the whole factors' logs, by central differences."""
    space = after(form, attention_factor=1.1, search_attention=attention)
    target = np.array([0.3, 0.9, 2.1, 2.4, 0.05])

    def off(scaling: Scaling) -> np.ndarray:
        return np.log([*scaling.factors, scaling.attention_factor]) - target

    x = inner(space, part)
    found = space.coordinate_gradient(x, 2 * off(space.candidate(x)))
    moves = 1e-6 * np.eye(len(x))
    wanted = [(sum(off(space.candidate(x + d)) ** 2) - sum(off(space.candidate(x - d)) ** 2)) / 2e-6 for d in moves]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(found).max() > 0.1


def test_what_is_no_second_stage() -> None:
    with pytest.raises(LongRopeError, match=r"length = 511 is below .* 512"):
        Space(ROPE, 511, before=BEFORE)
    with pytest.raises(LongRopeError, match=r"the only possible factor is 1. Search a length above the original 512"):
        Space(ROPE, 512, ceiling=1.0, before=BEFORE)
    with pytest.raises(LongRopeError, match="length = None: the rope after"):
        Space(ROPE, 2048, before=Scaling([2.0] * 4))
    with pytest.raises(LongRopeError, match=r"3 values .* 4 pairs"):
        Space(ROPE, 2048, before=Scaling([2.0] * 3, length=512))
