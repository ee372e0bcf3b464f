"""The table of search methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from longrope.errors import unknown
from longrope.search.auto import Auto
from longrope.search.cma import Cma
from longrope.search.evolution import Paper, Simple
from longrope.search.gradient import Gradient
from longrope.search.method import Method

METHODS: dict[str, Method] = {
    "auto": Auto(),
    "gradient": Gradient(),
    "cma": Cma(),
    "paper": Paper(),
    "simple": Simple(),
}


def get_method(name: str, population: int | None = None, length: int = 0) -> Method:
    """Return the method of a name, with its settings for a target length.

    Args:
        name: A key of `METHODS`.
        population: Population or number of gradient steps. None leaves the method's own for the length.
        length: Target length in tokens.

    Raises:
        LongRopeError: If the name is unknown, or the population is too small.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    method = METHODS[name]
    return method.for_length(length) if population is None else method.with_population(population)


def gradient_free() -> list[str]:
    """Return the names of the methods that need no gradient."""
    return [name for name, method in METHODS.items() if not method.uses_gradient]


def fit_to_budget(
    method: Method,
    tokens: Sequence[int],
    budget: int | None,
    context_cost: float = 0.0,
    *,
    starts: int | None = None,
) -> tuple[Method, int]:
    """Return a method fitted to a budget, and its estimated cost in token-evaluations.

    Args:
        method: Search method.
        tokens: Length of each sample in tokens.
        budget: Most token-evaluations; None for the method's own cost.
        context_cost: Cost of a pass in a frozen context as a part of that of a full pass; 0 without such contexts.
        starts: Number of starts; None for the method's own.
    """
    samples, total = len(tokens), sum(tokens)
    sizes: tuple[Any, ...] = (samples, context_cost) if method.uses_contexts else (samples,)
    more_starts = 0 if starts is None else starts - len(method.schemes)
    start_passes = math.ceil(round(more_starts * samples * method.start_cost(context_cost), 6))
    fitted = method if budget is None else method.within(budget * samples // total - start_passes, *sizes)
    cost = (fitted.passes(*sizes) + start_passes) * total // samples
    return fitted, cost if budget is None else min(budget, cost)
