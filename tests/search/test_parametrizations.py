from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from searching import LENGTH, ROPE

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.schemes import scheme, yarn
from longrope.search.parametrizations import PARAMETRIZATIONS, Parametrization, make_parametrization
from longrope.yarn_fit import yarn_of

EVERY = pytest.mark.parametrize("name", PARAMETRIZATIONS)
ROPES = st.builds(Rope, dim=st.integers(2, 40).map(lambda n: 2 * n), base=st.just(1e4), original_length=st.just(256))
SCALES, CEILINGS = st.floats(1.0, 64.0), st.floats(1.0, 2.0)
FRACTIONS = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=48, max_size=48)


def within(one: Parametrization, fractions: list[float]) -> np.ndarray:
    """Coordinates at some fraction of the way between the bounds."""
    part = np.resize(np.array(fractions), len(one.lower))
    return np.clip(one.lower + part * (one.upper - one.lower), one.lower, one.upper)


@EVERY
@given(ROPES, SCALES, CEILINGS, FRACTIONS)
def test_log_factors_stay_in_their_range(
    name: str, rope: Rope, scale: float, ceiling: float, fractions: list[float]
) -> None:
    assume(ceiling * scale > 1)
    one = make_parametrization(name, rope, scale, ceiling)
    found = one.log_factors(within(one, fractions))
    assert found.shape == (rope.dim // 2,)
    assert found.min() >= 0
    assert found.max() <= np.log(ceiling * scale) + 1e-12
    if name != "free":
        assert np.diff(found).min() >= 0


@EVERY
@given(ROPES, SCALES, CEILINGS)
def test_bounds_spread_and_beginnings_are_in_order(name: str, rope: Rope, scale: float, ceiling: float) -> None:
    assume(ceiling * scale > 1)
    one = make_parametrization(name, rope, scale, ceiling)
    assert one.lower.shape == one.upper.shape == one.unit.shape
    for beginning in one.initial_points:
        assert beginning.shape == one.lower.shape
        assert (one.lower <= beginning).all()
        assert (beginning <= one.upper).all()
    assert (one.unit > 0).all()


@pytest.mark.parametrize(
    ("name", "count"), [("free", 8), ("monotone", 8), ("spline", 6), ("ramp", 3), ("critical", 9), ("yarn", 3)]
)
def test_the_number_of_coordinates(name: str, count: int) -> None:
    assert len(make_parametrization(name, ROPE, 8.0, 2.0).lower) == count


@pytest.mark.parametrize(
    ("name", "room", "tolerance"),
    [
        ("free", 0, 1e-12),
        ("monotone", 0, 1e-3),
        ("spline", 0, 1e-3),
        ("ramp", 0.3, 0.15),
        ("critical", 0.3, 0.2),
        ("yarn", 0, 1e-9),
    ],
)
@settings(max_examples=8)
@given(fractions=FRACTIONS)
def test_nearest_recovers_what_can_be_written(name: str, room: float, tolerance: float, fractions: list[float]) -> None:
    """Of the curved shapes, what is not at the edge."""
    one = make_parametrization(name, ROPE, 8.0, 2.0)
    wanted = one.log_factors(within(one, [room + (1 - 2 * room) * part for part in fractions]))
    x = one.nearest(wanted)
    assert (one.lower <= x).all()
    assert (x <= one.upper).all()
    np.testing.assert_allclose(one.log_factors(x), wanted, atol=tolerance)


@EVERY
@pytest.mark.parametrize("start", ["ntk", "yarn", "heuristic"])
def test_nearest_is_as_near_as_any_of_many_points(name: str, start: str) -> None:
    one, wanted = make_parametrization(name, ROPE, 8.0, 2.0), np.log(scheme(start, ROPE, LENGTH).factors)
    rng = np.random.default_rng(0)

    def distance(x: np.ndarray) -> float:
        return float(np.linalg.norm(one.log_factors(x) - wanted))

    best = one.nearest(wanted)
    near = [np.clip(best + rng.normal(0, 0.02, len(best)) * one.unit, one.lower, one.upper) for _ in range(300)]
    far = [one.lower + rng.random(len(best)) * (one.upper - one.lower) for _ in range(300)]
    assert distance(best) <= min(map(distance, near + far)) + 1e-3


@given(FRACTIONS)
def test_every_free_log_factor_is_its_coordinate(fractions: list[float]) -> None:
    one = make_parametrization("free", ROPE, 8.0, 2.0)
    x = within(one, fractions)
    np.testing.assert_allclose(one.log_factors(x), x, atol=1e-15)


@given(FRACTIONS)
def test_the_free_jacobian_is_the_identity_on_the_bounds_too(fractions: list[float]) -> None:
    one = make_parametrization("free", ROPE, 8.0, 2.0)
    np.testing.assert_allclose(one.jacobian(within(one, fractions)), np.eye(8), atol=1e-9)


@given(st.lists(st.floats(0.01, 0.12), min_size=8, max_size=8))
def test_the_monotone_jacobian_sums(fractions: list[float]) -> None:
    one = make_parametrization("monotone", ROPE, 8.0, 2.0)
    x = within(one, fractions)
    np.testing.assert_allclose(one.log_factors(x), np.cumsum(x), atol=1e-12)
    np.testing.assert_allclose(one.jacobian(x), np.tril(np.ones((8, 8))), atol=1e-9)


def test_a_spline_is_linear_between_its_knots() -> None:
    rope = Rope(dim=22, base=1e4, original_length=256)  # 11 pairs: knots at 0, 2, 4, 6, 8, 10
    one, x = make_parametrization("spline", rope, 8.0, 2.0), np.array([0.1, 0.4, 0.0, 0.3, 0.2, 0.6])
    found = one.log_factors(x)
    np.testing.assert_allclose(found[::2], np.cumsum(x), atol=1e-12)
    np.testing.assert_allclose(found[1::2], (found[:-1:2] + found[2::2]) / 2, atol=1e-12)


@pytest.mark.parametrize("first", [-1.5, 0.0, 2.25])
@pytest.mark.parametrize("width", [0.5, 3.0, 8.0])
def test_a_ramp_is_flat_then_rises_then_is_flat(first: float, width: float) -> None:
    one = make_parametrization("ramp", ROPE, 8.0, 2.0)
    wanted = [1.7 * min(max((i - first) / width, 0), 1) for i in range(8)]
    np.testing.assert_allclose(one.log_factors(np.array([first, width, 1.7])), wanted, atol=1e-12)


@given(ROPES, st.floats(1.1, 64), CEILINGS)
def test_the_bounds_of_a_ramp(rope: Rope, scale: float, ceiling: float) -> None:
    """It begins from a quarter of the pairs before the first to the last, and is half a pair to all of them wide."""
    one, pairs = make_parametrization("ramp", rope, scale, ceiling), rope.dim // 2
    np.testing.assert_allclose(one.lower, [-pairs / 4, 0.5, 0])
    np.testing.assert_allclose(one.upper, [pairs - 1, pairs, np.log(ceiling * scale)])


@given(ROPES, st.floats(1.1, 64), CEILINGS)
def test_the_bounds_of_yarn(rope: Rope, scale: float, ceiling: float) -> None:
    """The band begins before the last pair and ends up to as many pairs beyond it; the factor is at least s."""
    one, pairs = make_parametrization("yarn", rope, scale, ceiling), rope.dim // 2
    np.testing.assert_allclose(one.lower, [0, 1, np.log(scale)])
    np.testing.assert_allclose(one.upper, [pairs - 2, 2 * pairs - 1, np.log(ceiling * scale)])


S, TOP = np.log(8), np.log(16)


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("free", [TOP] * 8),
        ("monotone", [TOP / np.sqrt(8)] * 8),
        ("spline", [TOP / np.sqrt(6)] * 6),
        ("ramp", [1, 1, S]),
        ("critical", [1, *[TOP - S] * 8]),
        ("yarn", [1, 1, S]),
    ],
)
def test_a_seed_moves_as_far_as_ever(name: str, unit: list[float]) -> None:
    """Typical changes decide which candidates a seed draws: an eighth of the pairs, and the room of the log factors."""
    np.testing.assert_allclose(make_parametrization(name, ROPE, 8.0, 2.0).unit, unit, rtol=1e-12)
    smallest = make_parametrization(name, ROPE, 1.0, 1.0 + 1e-9).unit
    assert smallest[-1] == 1e-3  # also where there is no room


def test_the_first_points_lie_in_the_middle() -> None:
    """Of sums, half of the largest factor; of the critical shape, six κ with log factors halfway from s to the top."""
    for name in ("free", "monotone", "spline"):
        one = make_parametrization(name, ROPE, 8.0, 2.0)
        (point,) = one.initial_points
        assert one.log_factors(point).max() == pytest.approx(TOP / 2)
    points = make_parametrization("critical", ROPE, 8.0, 2.0).initial_points
    np.testing.assert_allclose(points, [[kappa, *[(S + TOP) / 2] * 8] for kappa in (1, 2.2, 3.4, 4.6, 5.8, 7)])


def test_the_first_points_of_a_ramp() -> None:
    points = make_parametrization("ramp", ROPE, 8.0, 2.0).initial_points
    wanted = [[first, width, S] for first in (-1, 0.85, 2.7, 4.55, 6.4) for width in (1, 2, 4)]
    np.testing.assert_allclose(points, wanted)


@given(ROPES, st.floats(1.1, 64), CEILINGS)
def test_the_bounds_of_the_critical_shape(rope: Rope, scale: float, ceiling: float) -> None:
    one, pairs = make_parametrization("critical", rope, scale, ceiling), rope.dim // 2
    np.testing.assert_allclose(one.lower, [1, *[np.log(scale)] * pairs])
    np.testing.assert_allclose(one.upper, [pairs - 1, *[np.log(ceiling * scale)] * pairs])


@pytest.mark.parametrize("name", ["free", "monotone", "spline"])
@given(ROPES, SCALES, CEILINGS)
def test_sums_of_increments_reach_the_largest_factor_by_any_of_them(
    name: str, rope: Rope, scale: float, ceiling: float
) -> None:
    assume(ceiling * scale > 1.01)
    one, top = make_parametrization(name, rope, scale, ceiling), np.log(ceiling * scale)
    assert not one.lower.any()
    np.testing.assert_allclose(one.upper, top)
    for each in np.diag(one.upper):
        assert one.log_factors(each).max() == pytest.approx(top)
    assert not one.log_factors(one.lower).any()


TAILS = st.lists(st.floats(8.0, 16.0), min_size=8, max_size=8)


@given(st.integers(1, 7), TAILS)
def test_below_the_critical_pair_factors_are_longrope2s(kappa: int, tail: list[float]) -> None:
    """λ_i = λ_κ^(i/κ) for i < κ, and s … 2s, not decreasing, from κ on."""
    one = make_parametrization("critical", ROPE, 8.0, 2.0)
    factors = np.exp(one.log_factors(np.array([kappa, *np.log(tail)])))
    for i in range(kappa):
        assert factors[i] == pytest.approx(factors[kappa] ** (i / kappa))
    assert factors[kappa:].min() >= 8.0 - 1e-9
    assert factors[kappa:].max() <= 16.0 + 1e-9


@given(st.integers(1, 7), TAILS.map(sorted))
def test_from_the_critical_pair_on_every_factor_is_its_own(kappa: int, tail: list[float]) -> None:
    one = make_parametrization("critical", ROPE, 8.0, 2.0)
    factors = np.exp(one.log_factors(np.array([kappa, *np.log(tail)])))
    np.testing.assert_allclose(factors[kappa:], tail[kappa:], rtol=1e-12)


@given(st.floats(1.5, 6.5))
def test_with_equal_tails_the_slope_of_the_critical_shape(kappa: float) -> None:
    """All of a tail moved together: ∂ log λ_i = i/κ below κ, and 1 from it on."""
    one = make_parametrization("critical", ROPE, 8.0, 2.0)
    x = np.array([kappa, *[np.log(11.0)] * 8])
    move = np.array([0, *[1e-6] * 8])
    found = (one.log_factors(x + move) - one.log_factors(x - move)) / 2e-6
    np.testing.assert_allclose(found, np.minimum(np.arange(8) / kappa, 1), atol=1e-6)


@pytest.mark.parametrize("kappa", [2, 4, 6])
def test_the_jacobian_of_the_critical_shape(kappa: int) -> None:
    """By the log factor of the critical pair: i/κ below it; by those above it: the identity."""
    one, tail = make_parametrization("critical", ROPE, 8.0, 2.0), np.log(np.linspace(9, 15, 8))
    found = one.jacobian(np.array([kappa + 1e-3, *tail]))
    wanted = np.zeros((8, 8))
    wanted[:, kappa + 1 :] = np.eye(8)[:, kappa + 1 :]
    np.testing.assert_allclose(found[:, kappa + 2 :], wanted[:, kappa + 1 :], atol=1e-6)
    by_kappa = found[:, 1 : kappa + 2].sum(axis=1)
    np.testing.assert_allclose(by_kappa[: kappa + 1], np.arange(kappa + 1) / kappa, atol=2e-3)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(
        LongRopeError,
        match=r"^parametrization = 'wavy' is unknown; choose one of free, monotone, spline, ramp, c",
    ):
        make_parametrization("wavy", ROPE, 8.0, 2.0)


@settings(max_examples=30)
@given(ROPES, st.floats(1.1, 64), CEILINGS, FRACTIONS)
def test_every_candidate_is_a_yarn(rope: Rope, scale: float, ceiling: float, fractions: list[float]) -> None:
    """Of whole pairs, with a factor of at least s, as `yarn` computes it from its three parameters."""
    assume(rope.dim > 2)
    one = make_parametrization("yarn", rope, scale, ceiling)
    length = round(scale * rope.original_length)
    factors = np.exp(one.log_factors(within(one, fractions)))
    parameters = yarn_of(rope, Scaling(factors.tolist(), length=int(scale * rope.original_length)))
    assert parameters is not None
    assert parameters["factor"] >= scale * (1 - 1e-6)
    np.testing.assert_allclose(yarn(rope, length, **parameters).factors, factors, rtol=1e-7)


@given(FRACTIONS)
def test_slopes_of_yarn_are_those_of_the_band_between_whole_pairs(fractions: list[float]) -> None:
    one = make_parametrization("yarn", ROPE, 8.0, 2.0)
    assert one.smooth is not None
    x = within(one, fractions)
    whole = np.array([round(x[0]), max(round(x[1]), round(x[0]) + 1), x[2]])
    np.testing.assert_allclose(one.log_factors(whole), one.smooth(whole), atol=1e-12)
    np.testing.assert_allclose(one.jacobian(whole)[:, 2], slope_by_factor(whole), atol=1e-6)


def slope_by_factor(x: np.ndarray) -> np.ndarray:
    """Derivative of the log factors by the log factor of the band's end, in closed form."""
    gamma = 1 - np.clip((np.arange(8) - x[0]) / (x[1] - x[0]), 0, 1)
    return (1 - gamma) / ((1 - gamma) + gamma * np.exp(x[2]))


@EVERY
def test_a_rope_of_one_pair_has_coordinates_or_an_error(name: str) -> None:
    rope = Rope(dim=2, base=1e4, original_length=256)
    if name == "critical":
        with pytest.raises(LongRopeError, match=r"^parametrization = 'critical': a rope of dim 2 has no pair below"):
            make_parametrization(name, rope, 8.0, 1.25)
        return
    one = make_parametrization(name, rope, 8.0, 1.25)
    (factor,) = np.exp(one.log_factors(one.nearest(np.log([3.0]))))
    assert factor == pytest.approx(1.0 if name == "yarn" else 3.0, rel=1e-6)  # a YaRN's first pair is unchanged


def test_yarn_is_refused_on_a_rope_that_carries_factors() -> None:
    with pytest.raises(
        LongRopeError,
        match=r"^parametrization = 'yarn': the model is used to factors already, and their product with a YaRN is "
        r"not a YaRN. Use another parametrization, or start from a plain checkpoint.$",
    ):
        make_parametrization("yarn", scheme("pi", ROPE, 512).rope_after(ROPE), 4.0, 2.0)
