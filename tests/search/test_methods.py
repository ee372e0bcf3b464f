from __future__ import annotations

import pytest
from searching import SMALL, STARTS, asks, space_of

from longrope.errors import LongRopeError
from longrope.schemes import SCHEMES
from longrope.search.methods import METHODS, method
from longrope.search.shapes import SHAPES


def test_the_names() -> None:
    assert list(METHODS) == ["auto", "gradient", "cma", "paper", "simple"]
    assert all(method(name) is METHODS[name] for name in METHODS)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(LongRopeError, match=r"'magic' is unknown; choose one of auto, gradient, cma, paper, simple"):
        method("magic")


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_is_best_used_with_exists(name: str) -> None:
    assert METHODS[name].form in SHAPES
    assert set(METHODS[name].starts) <= set(SCHEMES)
    assert METHODS[name].ceiling >= 1


@pytest.mark.parametrize("items", [1, 4])
@pytest.mark.parametrize("name", METHODS)
def test_about_how_many_forward_passes_it_costs(name: str, items: int) -> None:
    """With as many starts as it is best used with, it asks for no more, and for most of them."""
    one = METHODS[name].sized(12)
    asked = asks(one, space_of(one), starts=STARTS[: len(one.starts)])
    cost = sum((items if ask.turn is None else 3) * len(ask.candidates) for ask in asked)
    assert 0.5 * one.passes(items) < cost <= one.passes(items) + items * len(one.starts)
    assert cost == one.passes(items) or name == "cma"


@pytest.mark.parametrize("name", SMALL)
def test_a_conversation_can_be_had_again(name: str) -> None:
    """Nothing of the first one stays in the method or the space."""
    space = space_of(SMALL[name], start_tokens=(0, 4), attention=True)
    assert asks(SMALL[name], space) == asks(SMALL[name], space)
