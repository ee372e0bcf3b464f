from __future__ import annotations

import numpy as np
import pytest
from searching import LENGTH, ROPE, SMALL, asks, space_of

from longrope.errors import LongRopeError
from longrope.scaling import Scaling
from longrope.schemes import SCHEMES, scheme
from longrope.search.evolution import STEP, Paper
from longrope.search.parametrizations import PARAMETRIZATIONS
from longrope.search.registry import METHODS, fit_to_budget, get_method


def test_the_names() -> None:
    assert list(METHODS) == ["auto", "gradient", "cma", "paper", "simple"]
    assert all(get_method(name) is METHODS[name] for name in METHODS)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(
        LongRopeError, match=r"^method = 'magic' is unknown; choose one of auto, gradient, cma, paper, s"
    ):
        get_method("magic")


def test_only_the_papers_population_is_half_beyond_512k() -> None:
    """64 becomes 32 at 1M and 2M (section 4.1), unless told otherwise."""
    assert get_method("paper", length=2**19) == Paper()
    assert get_method("paper", length=2**21) == Paper(population=32, mutations=8, crossovers=8, parents=16)
    assert get_method("paper", 12, 2**21) == Paper().with_population(12)
    assert all(get_method(name, length=2**21) is METHODS[name] for name in METHODS if name != "paper")


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_is_best_used_with_exists(name: str) -> None:
    assert METHODS[name].parametrization in PARAMETRIZATIONS
    assert set(METHODS[name].schemes) <= set(SCHEMES)
    assert METHODS[name].ceiling >= 1


@pytest.mark.parametrize("items", [1, 4])
@pytest.mark.parametrize("name", METHODS)
def test_about_how_many_forward_passes_it_costs(name: str, items: int) -> None:
    """With as many starts as it is best used with, it asks for no more, and for most of them.

    A candidate that leads is asked for again, and costs nothing without frozen contexts.
    """
    one = METHODS[name].with_population(12)
    asked = asks(one, space_of(one), starts=[scheme(each, ROPE, LENGTH) for each in one.schemes])
    compared = [candidate for ask in asked if ask.gradient_step is None for candidate in ask.candidates]
    cost = items * len(set(compared) if one.uses_contexts else compared) + 3 * sum(
        ask.gradient_step is not None for ask in asked
    )
    assert 0.5 * one.passes(items) < cost <= one.passes(items) + items * len(one.schemes)
    assert cost == one.passes(items) or name == "cma"


@pytest.mark.parametrize("name", SMALL)
def test_a_conversation_can_be_had_again(name: str) -> None:
    """Nothing of the first one stays in the method or the space."""
    space = space_of(SMALL[name], start_tokens=(0, 4), search_attention=True)
    assert asks(SMALL[name], space) == asks(SMALL[name], space)


BEFORE = scheme("yarn", ROPE, 512)  # 2x, of 8x
WANTED = BEFORE.times(np.linspace(1, 2, 8) ** 1.6)


def far(scaling: Scaling) -> np.ndarray:
    """How far the whole log factors are from those wanted."""
    return np.log(scaling.factors) - np.log(WANTED.factors)


@pytest.mark.parametrize("name", METHODS)
def test_a_search_goes_on_from_the_stage_before(name: str) -> None:
    """It finds better than it starts from, and no candidate leaves the bounds of the second stage."""
    space = space_of(SMALL[name], before=BEFORE)
    starts = [scheme(one, space.relative, LENGTH).times(space.relative.factors) for one in METHODS[name].schemes]

    def loss(scaling: Scaling) -> float:
        return float((far(scaling) ** 2).mean())

    def slope(scaling: Scaling, _: int) -> list[float]:
        return [*(far(scaling) / 4), 0.0]

    candidates = [
        one for ask in asks(SMALL[name], space, loss=loss, slope=slope, starts=starts) for one in ask.candidates
    ]
    assert min(map(loss, candidates)) < 0.9 * min(map(loss, starts))
    off = {"cma": 0.1, "paper": STEP}.get(name, 1e-9)  # a spline of five knots; a grid
    for start, first in zip(starts, candidates, strict=False):
        np.testing.assert_allclose(np.log(first.factors), np.log(start.factors), atol=off)
    times = np.array([one.factors for one in candidates]) / BEFORE.factors
    assert times.min() >= 1 - 1e-12
    assert times.max() <= SMALL[name].ceiling * 4 * (1 + 1e-12)


@pytest.mark.parametrize("items", [(100,), (100, 300), (256, 256, 512, 1024)])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_planned_without_a_budget(name: str, items: tuple[int, ...]) -> None:
    """The method itself, and what its passes cost over items of the mean length."""
    found, total = fit_to_budget(METHODS[name], items, None)
    assert found is METHODS[name]
    assert total == int(found.passes(len(items)) * np.mean(items))
    assert type(total) is int


@pytest.mark.parametrize("items", [(100,), (100, 300), (256, 256, 512, 1024)])
@pytest.mark.parametrize("times", [12, 45, 200])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_planned_within_a_budget(name: str, times: int, items: tuple[int, ...]) -> None:
    """What can, plans for so many candidates on all items, and not for many fewer; the others just end there."""
    budget = times * sum(items)
    found, total = fit_to_budget(METHODS[name], items, budget)
    assert total == min(budget, int(found.passes(len(items)) * np.mean(items)))
    assert type(total) is int
    if name in ("auto", "gradient"):
        assert repr(found) == repr(METHODS[name].within(int(times * len(items)), len(items)))  # a whole number of steps
        assert 0.6 * budget < found.passes(len(items)) * np.mean(items) <= budget
    else:
        assert found == METHODS[name]


@pytest.mark.parametrize("budget", [None, 40 * 2048])
@pytest.mark.parametrize("name", METHODS)
def test_contexts_are_counted_only_where_a_method_uses_them(name: str, budget: int | None) -> None:
    items = (256, 256, 512, 1024)
    found, total = fit_to_budget(METHODS[name], items, budget, 0.25)
    if METHODS[name].uses_contexts:
        own = METHODS[name] if budget is None else METHODS[name].within(160, 4, 0.25)
        cost = own.passes(4, 0.25) * 512
        assert total < own.passes(4) * 512
    else:
        own = METHODS[name] if budget is None else METHODS[name].within(160, 4)
        cost = own.passes(4) * 512
    assert (found, total) == (own, cost if budget is None else min(budget, cost))


@pytest.mark.parametrize(("name", "each"), [("auto", 0.25), ("gradient", 1.0), ("cma", 0.0), ("paper", 0.0)])
def test_more_starts_than_a_methods_own_are_paid_for(name: str, each: float) -> None:
    method, items = METHODS[name], (2048,) * 8
    (_, plain), (_, more) = (
        fit_to_budget(method, items, None, 0.25, starts=len(method.schemes) + count) for count in (0, 4)
    )
    assert more - plain == 4 * each * sum(items)


@pytest.mark.parametrize("name", ["auto", "gradient"])
def test_a_budget_pays_for_more_steps_in_contexts(name: str) -> None:
    items = (2048,) * 8
    steps = [
        fit_to_budget(METHODS[name], items, 40 * sum(items), cost)[0].gradient_steps(8)
        for cost in (0.25, 0.125, 0.0625)
    ]
    assert steps == sorted(set(steps))
    assert steps[0] > fit_to_budget(METHODS[name], items, 40 * sum(items))[0].gradient_steps(8)
