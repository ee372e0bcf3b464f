from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import (
    LENGTH,
    ROPE,
    STARTS,
    TARGET,
    Documents,
    asks,
    attentive,
    attentive_slope,
    generations,
    quadratic,
    run_search,
    slope,
    space_of,
)

from longrope.errors import LongRopeError
from longrope.rope import Scaling
from longrope.search.gradient import Gradient
from longrope.search.objective import Function
from longrope.search.shapes import SHAPES

METHOD = Gradient(steps=10)


def steps(found: list[list[Scaling]]) -> np.ndarray:
    """Changes of the log factors from step to step, ``(steps, pairs)``."""
    return np.diff(np.log([generation[0].factors for generation in found]), axis=0)


def test_it_comes_close_to_the_target(tmp_path: Path) -> None:
    best = run_search(tmp_path / "j", Gradient(steps=120)).best
    np.testing.assert_allclose(np.log(best.factors), np.log(TARGET), atol=0.1)


@pytest.mark.parametrize("form", SHAPES)
def test_it_improves_on_its_start_in_every_form(tmp_path: Path, form: str) -> None:
    outcome = run_search(tmp_path / "j", Gradient(steps=40), form=form)
    start = min(record.loss for record in outcome.records[:1])
    first = {one: loss for loss, one in outcome.ranked}
    assert outcome.ranked[0][0] < 0.95 * start
    assert len(first) == len(outcome.ranked)


@given(st.integers(8, 300))
def test_within_a_budget_it_costs_no_more(evaluations: int) -> None:
    """Nor so little that one more step would fit in."""
    found = Gradient().within(evaluations)
    assert evaluations - 3 < found.evaluations <= evaluations


@pytest.mark.parametrize("evaluations", [8, 9, 20, 33])
@pytest.mark.parametrize("items", [1, 3])
def test_what_it_says_it_costs_is_what_it_costs(tmp_path: Path, evaluations: int, items: int) -> None:
    method = Gradient().within(evaluations)
    documents = Documents((7,) * items)
    outcome = run_search(tmp_path / "j", method, objective=documents, starts=STARTS[1:])
    assert outcome.stopped == "the method is done"
    assert outcome.tokens == method.evaluations * 7 * items <= evaluations * 7 * items


def test_other_numbers_of_steps() -> None:
    assert Gradient().sized(50) == Gradient(steps=50)
    assert Gradient(rate=0.3).within(62) == Gradient(steps=20, rate=0.3)
    with pytest.raises(LongRopeError, match="population = 2 is too small"):
        Gradient().sized(2)


def test_the_starts_are_compared_and_the_best_is_gone_on_from() -> None:
    asked = asks(METHOD, space_of(METHOD))
    assert [len(ask.candidates) for ask in asked] == [3] + [1] * 10
    assert [ask.gradient for ask in asked] == [False] + [True] * 10
    np.testing.assert_allclose(asked[1].candidates[0].factors, min(STARTS, key=quadratic).factors, rtol=1e-9)


def test_one_start_needs_no_comparison() -> None:
    asked = asks(METHOD, space_of(METHOD), starts=STARTS[:1])
    assert [ask.gradient for ask in asked] == [True] * 10


@pytest.mark.parametrize("bad", range(3))
def test_a_start_without_a_finite_loss_is_not_gone_on_from(bad: int) -> None:
    space = space_of(METHOD)
    closest = [space.at(space.coordinates(start)) for start in STARTS]
    losses = {closest[bad]: math.inf, closest[(bad + 1) % 3]: 2.0, closest[(bad + 2) % 3]: 1.0}
    asked = generations(METHOD, space, loss=lambda one: losses.get(one, 0.5))
    assert asked[1] == [space.at(space.coordinates(closest[(bad + 2) % 3]))]


def middle(**fields: object) -> list[list[Scaling]]:
    """Steps from factors that are all away from their bounds."""
    return generations(METHOD, space_of(METHOD), starts=[Scaling([3.0] * 8)], **fields)


def test_the_first_step_is_against_the_sign_of_the_slope_and_damped_in_fast_pairs() -> None:
    """Adam's first step has the same size wherever the slope is not 0, times min(1, 1 / (8·inv_freq))."""
    first = steps(middle())[0]
    assert (np.sign(first) == np.sign(np.log(TARGET) - np.log(3.0))).all()
    np.testing.assert_allclose(abs(first) / abs(first[-1]), np.minimum(1, 1 / (METHOD.reach * ROPE.inv_freq)), rtol=1e-6)


def test_no_step_turns_a_fast_pair_further_than_it_changes_the_slow_ones() -> None:
    moved = np.abs(steps(middle()))
    turned = moved * np.minimum(1, ROPE.inv_freq * METHOD.reach)
    assert (turned[0] <= moved[0, -1] * (1 + 1e-9)).all()
    assert (turned <= 3 * moved[0, -1]).all()


def test_the_steps_fall_to_nothing() -> None:
    """With a slope that never changes, by the cosine."""
    sizes = steps(middle(slope=lambda _: [*[-1.0] * 8, 0.0]))[:, -1]
    cosine = (1 + np.cos(np.pi * np.arange(9) / 10)) / 2
    np.testing.assert_allclose(sizes / sizes[0], cosine, rtol=1e-6)


def test_adam_by_hand() -> None:
    """The last pair, which is not damped, against Adam written out for one number."""
    asked = generations(METHOD, space_of(METHOD), starts=[Scaling([3.0] * 8)])
    path = np.log([generation[0].factors[-1] for generation in asked])
    x, m, v = path[0], 0.0, 0.0
    rate = path[1] - path[0]  # the first step is the rate
    for step in range(9):
        g = 2 / 8 * (x - np.log(TARGET[-1]))
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        size = rate * (1 + math.cos(math.pi * step / 10)) / 2
        x = x - size * (m / (1 - 0.9 ** (step + 1))) / (math.sqrt(v / (1 - 0.99 ** (step + 1))) + 1e-12)
        assert x == pytest.approx(path[step + 1], rel=1e-6)


@pytest.mark.parametrize("frozen", [0.5, 5.0])
def test_frozen_pairs_keep_their_factors(frozen: float) -> None:
    method, start = Gradient(steps=6, frozen=frozen), Scaling([3.0] * 8)
    found = generations(method, space_of(method), starts=[start])
    still = ROPE.original_length / ROPE.wavelengths > frozen
    moved = np.abs(steps(found)).max(axis=0)
    assert (moved[still] == 0).all()
    assert (moved[~still] > 0).all()
    assert still.sum() == sum(256 / (2 * math.pi * 10 ** (i / 2)) > frozen for i in range(8))


def walled(bad_loss: float, bad_slope: float) -> tuple[list[list[Scaling]], list[int]]:
    """Steps where everything beyond 3.2 in the last pair is bad, and which of them were."""

    def is_bad(one: Scaling) -> bool:
        return one.factors[-1] > 3.2

    found = middle(
        loss=lambda one: bad_loss if is_bad(one) else quadratic(one),
        slope=lambda one: [bad_slope] * 9 if is_bad(one) else slope(one),
    )
    return found, [i for i, (one,) in enumerate(found) if is_bad(one)]


@pytest.mark.parametrize(("bad_loss", "bad_slope"), [(math.inf, math.inf), (math.inf, 0.0), (9.0, math.nan)])
def test_what_is_not_finite_halves_the_step_and_goes_on_from_the_best(bad_loss: float, bad_slope: float) -> None:
    found, bad = walled(bad_loss, bad_slope)
    assert bad
    first = bad[0]
    assert found[first + 1] == [min((one for (one,) in found[:first]), key=quadratic)]
    cosine = [(1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)]
    size = steps(found)[0, -1] / 2 * cosine[first + 1] / cosine[0]
    assert steps(found)[first + 1, -1] == pytest.approx(size, rel=1e-6)


def test_a_slope_that_is_not_finite_at_a_better_loss_does_not_end_the_progress() -> None:
    """It goes on from the best that has a slope, not from where there is none."""
    found, bad = walled(0.0, math.nan)
    assert bad
    assert len({one for (one,) in found[bad[0] + 1 :]}) > 2


def test_every_number_of_start_tokens_is_asked_for_in_the_end() -> None:
    offered = (0, 4, 8, 16)
    asked = asks(METHOD, space_of(METHOD, start_tokens=offered))
    assert [one.start_tokens for one in asked[-1].candidates] == list(offered)
    best = min((ask.candidates[0] for ask in asked[1:-1]), key=quadratic)
    assert {one.factors for one in asked[-1].candidates} == {best.factors}
    assert not asked[-1].gradient


def test_the_attention_factor_is_searched_with_the_factors(tmp_path: Path) -> None:
    objective = Function(attentive, attentive_slope)
    best = run_search(tmp_path / "j", Gradient(steps=60), objective=objective, attention=True).best
    assert best.attention_factor == pytest.approx(1.15, abs=0.03)
    fixed = run_search(tmp_path / "k", Gradient(steps=60), objective=objective).best
    assert fixed.attention_factor == 1.0


def test_candidates_stay_in_the_space() -> None:
    """However steep it is."""
    space = space_of(METHOD, attention=True)
    for sign in (-1, 1):
        found = generations(Gradient(steps=30, rate=5.0), space, slope=lambda _, sign=sign: [sign * 1e6] * 9)
        for (one,) in found[1:]:
            assert 1 <= min(one.factors) <= max(one.factors) <= space.largest * (1 + 1e-12)
            assert 1 <= one.attention_factor <= space.largest_attention * (1 + 1e-12)
        edge = space.largest if sign < 0 else 1
        assert found[-1][0].factors[-1] == pytest.approx(edge)
    assert space.length == LENGTH


def test_pairs_on_their_bound_move_as_far_as_others() -> None:
    """A start with factors of 1, as YaRN's, takes the same first steps as one with factors above."""
    upwards = {"slope": lambda _: [*[-1.0] * 8, 0.0]}
    on = generations(METHOD, space_of(METHOD), starts=[Scaling([1.0] * 8)], **upwards)
    off = generations(METHOD, space_of(METHOD), starts=[Scaling([1.5] * 8)], **upwards)
    np.testing.assert_allclose(steps(on)[0], steps(off)[0], rtol=1e-6)
