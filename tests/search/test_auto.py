from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import LENGTH, ROPE, STARTS, TARGET, Documents, asks, evaluations, quadratic, search_with, space_of

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.schemes import scheme
from longrope.search.auto import RAMPS, Auto, ramps
from longrope.search.gradient import Gradient
from longrope.search.protocol import CandidateLoss
from longrope.search.registry import fit_to_budget


def own_starts(method: Auto) -> list[Scaling]:
    return [scheme(name, ROPE, LENGTH) for name in method.schemes]


METHOD = Auto(ramps=3, gradient=Gradient(steps=8))


@pytest.mark.parametrize(("dim", "base", "original", "scale"), [(16, 1e4, 256, 8), (128, 5e5, 8192, 16)])
def test_ramps_are_straight_between_two_numbers_of_turns(dim: int, base: float, original: int, scale: int) -> None:
    rope = Rope(dim, base, original)
    space = space_of(METHOD, rope, original * scale)
    turns = original * base ** (-2 * np.arange(dim // 2) / dim) / (2 * np.pi)
    found = ramps(space)
    assert len(found) == len(RAMPS)
    for (first, last, top), one in zip(RAMPS, found, strict=True):
        logs = np.log(one.factors)
        assert (logs[turns > first] == 0).all()
        np.testing.assert_allclose(logs[turns < last], np.log(top * scale), rtol=1e-12)
        slopes = np.diff(logs)[(turns[:-1] <= first) & (turns[1:] >= last)]
        assert (slopes > 0).all()
        np.testing.assert_allclose(slopes, slopes[:1].repeat(len(slopes)), rtol=1e-9)


@given(st.integers(1, 40), st.floats(2, 1e7), st.integers(8, 2**17), st.floats(1.01, 512), st.floats(1, 2))
def test_ramps_rise_from_1_to_their_ends(pairs: int, base: float, original: int, scale: float, ceiling: float) -> None:
    space = space_of(METHOD, Rope(2 * pairs, base, original), math.ceil(original * scale), ceiling=ceiling)
    for (first, last, top), one in zip(RAMPS, ramps(space), strict=True):
        lam = np.array(one.factors)
        assert lam.shape == (pairs,)
        assert lam.min() >= 1
        assert lam.max() <= min(top * space.scale, space.largest) * (1 + 1e-12)
        assert (np.diff(lam) >= -1e-9).all()
        assert (one.scheme, one.length) == (f"ramp({first:g}, {last:g}, {top:g})", space.length)


def test_the_names_of_the_ramps() -> None:
    names = ["ramp(10, 0.3, 1.15)", "ramp(10, 1, 1)", "ramp(32, 0.3, 1.15)", "ramp(3, 0.3, 1.15)", "ramp(3, 1, 1)"]
    assert [one.scheme for one in ramps(space_of(METHOD))] == names


def test_ramps_keep_to_the_ceiling() -> None:
    for one in ramps(space_of(METHOD, ceiling=1.0)):
        assert 1 <= min(one.factors) <= max(one.factors) <= 8.0


@pytest.mark.parametrize("count", [1, 3, 5])
def test_starts_and_ramps_come_first_and_the_best_of_them_is_gone_on_from(count: int) -> None:
    """The first start alone, all others together, the best three of these one by one, then the steps."""
    method = Auto(ramps=count, gradient=Gradient(steps=4))
    space = space_of(method)
    asked = asks(method, space)
    assert [len(ask.candidates) for ask in asked] == [1, 2 + count] + [1] * 3 + [1] * 5
    assert [ask.gradient_step for ask in asked] == [None] * 5 + [0, 1, 2, 3, None]
    assert [ask.counts for ask in asked] == [False] * 5 + [True] * 5  # patience begins with the steps
    closed_forms = [*asked[0].candidates, *asked[1].candidates]
    for wanted, found in zip([*STARTS, *ramps(space)[:count]], closed_forms, strict=True):
        np.testing.assert_allclose(found.factors, wanted.factors, rtol=1e-9)
    assert [ask.candidates[0] for ask in asked[2:5]] == sorted(closed_forms[1:], key=quadratic)[:3]
    best = min(closed_forms, key=quadratic)
    np.testing.assert_allclose(asked[5].candidates[0].factors, best.factors, rtol=1e-9)


def test_closed_forms_are_ranked_in_the_contexts_of_the_first_and_the_leaders_get_their_own() -> None:
    asked = asks(METHOD, space_of(METHOD))
    first = asked[0].candidates[0]
    assert [asked[0].reference, asked[1].reference] == [first, first]
    assert [ask.reference for ask in asked[2:5]] == [ask.candidates[0] for ask in asked[2:5]]


def test_the_first_steps_refer_to_the_closed_form_that_had_its_full_pass() -> None:
    """To the last bit, so that its contexts are those that are kept."""
    asked = asks(METHOD, space_of(METHOD))
    best = min((ask.candidates[0] for ask in (asked[0], *asked[2:5])), key=quadratic)
    assert [ask.reference for ask in asked[5:10]] == [best] * 5
    assert asked[5].candidates == [best]


@pytest.mark.parametrize(("count", "leaders"), [(1, 0), (2, 1), (3, 2)])
def test_few_closed_forms_are_all_leaders(count: int, leaders: int) -> None:
    method = Auto(ramps=1, gradient=Gradient(steps=4))
    asked = asks(method, space_of(method), starts=STARTS[: count - 1])
    steps = [ask.gradient_step for ask in asked].index(0)
    assert [len(ask.candidates) for ask in asked[:steps]] == [1, *[leaders] * bool(leaders), *[1] * leaders]


def test_equal_closed_forms_are_asked_for_once() -> None:
    method = Auto(ramps=1, gradient=Gradient(steps=4))
    asked = asks(method, space_of(method), starts=[STARTS[0], STARTS[2], STARTS[0], STARTS[2]])
    assert [len(ask.candidates) for ask in asked[:4]] == [1, 2, 1, 1]
    assert asked[4].gradient_step == 0


@pytest.mark.parametrize("worst", [0, 1, 2])
def test_a_full_pass_decides_between_the_first_and_the_leaders(worst: int) -> None:
    """What leads in the contexts of the first may be worse than it."""
    space = space_of(METHOD)
    conversation = METHOD.propose(space, STARTS, np.random.default_rng(0))
    next(conversation)
    ask = conversation.send([CandidateLoss(1.0)])
    asked = [ask := conversation.send([CandidateLoss(0.1 * i) for i in range(len(ask.candidates))])]
    for i in range(3):
        ask = conversation.send([CandidateLoss([1.1, 0.9, 1.2][(i + worst) % 3])])
        asked.append(ask)
    best = asked[(1 - worst) % 3].candidates[0]
    np.testing.assert_allclose(asked[3].candidates[0].factors, best.factors, rtol=1e-9)


@pytest.mark.parametrize("name", ["pi", "ntk", "yarn", "ramp(10, 0.3, 1.15)", "ramp(10, 1, 1)", "ramp(32, 0.3, 1.15)"])
def test_the_state_of_every_step_names_the_closed_form_that_it_began_from(tmp_path: Path, name: str) -> None:
    space = space_of(METHOD)
    target = {one.scheme: one for one in [*STARTS, *ramps(space)]}[name]

    def loss(scaling: Scaling) -> float:
        return float(np.abs(np.log(scaling.factors) - np.log(target.factors)).max())

    asked = asks(METHOD, space, loss=loss)
    assert [ask.state.get("closed_form") for ask in asked] == [None] * 5 + [name] * (len(asked) - 5)
    assert search_with(tmp_path / "j", METHOD, objective=loss).closed_form == name
    assert search_with(tmp_path / "k", METHOD.gradient, objective=loss).closed_form == ""


def test_it_comes_close_to_the_target(tmp_path: Path) -> None:
    best = search_with(tmp_path / "j", Auto(gradient=Gradient(steps=120))).best
    np.testing.assert_allclose(np.log(best.factors), np.log(TARGET), atol=0.1)


@given(st.integers(0, 3000), st.integers(1, 30))
def test_within_a_budget_it_costs_no_more(passes: int, items: int) -> None:
    """Nor so little that one more step would fit in; one ramp and one step are the least."""
    found = Auto().within(passes, items)
    assert found.ramps >= 1
    assert found.gradient.steps >= 1
    assert found.passes(items) <= passes or (found.ramps, found.gradient.steps) == (1, 1)
    assert found.with_population(max(4, found.gradient.steps + 1)).passes(items) > passes


@pytest.mark.parametrize("passes", [43, 57, 90, 300])
@pytest.mark.parametrize(("items", "starts"), [(2, 6), (5, 6), (2, 1), (2, 8)])
def test_what_it_says_it_costs_is_what_it_costs(tmp_path: Path, passes: int, items: int, starts: int) -> None:
    """With its own six starts, and with fewer and more of them."""
    tokens, factors = (7,) * items, [*own_starts(Auto()), *STARTS]
    method, total = fit_to_budget(Auto(), tokens, passes * 7, starts=starts)
    outcome = search_with(tmp_path / "j", method, objective=Documents(tokens, apart=0.1), starts=factors[:starts])
    assert outcome.stopped == "the method is done"
    repeated = method.gradient.steps - sum("gradient" in line for line in evaluations(tmp_path / "j"))
    assert outcome.tokens + 3 * repeated * 7 == total <= passes * 7
    more_steps = method.with_population(max(4, method.gradient.steps + 1))
    assert total + 7 * (more_steps.passes(items) - method.passes(items)) > passes * 7
    assert repeated <= 1


@pytest.mark.parametrize("items", [1, 4])
def test_a_larger_budget_has_more_of_both(items: int) -> None:
    """But for the steps that one more ramp costs."""
    found = [Auto().within(passes * items, items) for passes in range(8, 120, 6)]
    for one, more in pairwise(found):
        assert one.ramps <= more.ramps
        assert one.gradient.steps <= more.gradient.steps
    assert found[-1].ramps == len(RAMPS)


def test_the_default_is_the_tested_one() -> None:
    assert Auto() == Auto(ramps=5, gradient=Gradient(steps=40))
    assert Auto().passes(4) == (5 + len(Auto.schemes) + 8) * 4 + 3 * 40


def test_contexts_cost_a_part_of_a_pass() -> None:
    """Four full passes and one in contexts for each other closed form; two samples of eight a step."""
    others = 5 + len(Auto.schemes) - 1
    closed_forms, steps, comparisons = 4 * 8 + others * 8 / 4, 40 * 3 * 2 / 4, 8 * 8
    assert Auto().passes(8, 0.25) == closed_forms + steps + comparisons
    assert Auto().gradient_steps(8, 0.25) == 40 * 2 / 4
    assert Auto().passes(8, 0.0) == Auto().passes(8)


@given(st.integers(0, 3000), st.integers(1, 30), st.sampled_from([0.03125, 0.125, 0.25, 0.5]))
def test_within_a_budget_it_costs_no_more_in_contexts(passes: int, items: int, context_cost: float) -> None:
    found = Auto().within(passes, items, context_cost)
    assert found.ramps >= 1
    assert found.passes(items, context_cost) <= passes or found.gradient.steps == 1
    assert found.with_population(max(4, found.gradient.steps + 1)).passes(items, context_cost) > passes


def test_other_numbers_of_steps() -> None:
    assert Auto(ramps=2).with_population(9) == Auto(ramps=2, gradient=Gradient(steps=9))
    with pytest.raises(LongRopeError, match="population = 0: too small"):
        Auto().with_population(0)


def test_start_tokens_and_length_are_the_spaces() -> None:
    for ask in asks(METHOD, space_of(METHOD, start_tokens=(5,), attention_factor=1.1)):
        for one in ask.candidates:
            assert (one.start_tokens, one.attention_factor, one.length) == (5, 1.1, LENGTH)
            assert len(one.factors) == ROPE.dim // 2
