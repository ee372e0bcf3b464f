"""The table of search methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np

from longrope.errors import unknown
from longrope.scaling import Scaling
from longrope.search.auto import Auto
from longrope.search.cma import Cma
from longrope.search.evolution import Paper, Simple
from longrope.search.gradient import Gradient
from longrope.search.protocol import Proposals
from longrope.search.space import Space

HALVED = 512 * 1024  # tokens


class Method(Protocol):
    """A search method: a small dataclass that proposes candidates.

    ``ceiling``, ``parametrization`` and ``starts`` are the values to use it with by default. ``shaped`` says whether it
    moves through the coordinates of the parametrization; if not, the parametrization makes no difference.
    """

    shaped: ClassVar[bool]
    ceiling: ClassVar[float]
    parametrization: ClassVar[str]
    starts: ClassVar[tuple[str, ...]]

    def passes(self, items: int) -> int:
        """About how many forward passes over one item it costs with so many items."""
        ...

    def within(self, passes: int, items: int) -> Method:
        """The same, for a budget of so many forward passes over one item."""
        ...

    def sized(self, population: int) -> Method:
        """The same with another population (of the gradient: another number of steps)."""
        ...

    def converse(self, space: Space, starts: Sequence[Scaling], rng: np.random.Generator) -> Proposals:
        """Ask for candidates until the search is over."""
        ...


METHODS: dict[str, Method] = {
    "auto": Auto(),
    "gradient": Gradient(),
    "cma": Cma(),
    "paper": Paper(),
    "simple": Simple(),
}


def method(name: str, population: int | None = None, length: int = 0) -> Method:
    """The method of a name, as it is used at a length.

    Args:
        name: a key of `METHODS`.
        population: its own if None; the paper's is then half of it beyond 512K tokens, as in the paper.
        length: in tokens.

    Raises:
        LongRopeError: if there is none, or the population is too small.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    chosen = METHODS[name]
    if population is None and length > HALVED and isinstance(chosen, Paper):
        population = chosen.population // 2
    return chosen if population is None else chosen.sized(population)


def planned(chosen: Method, items: Sequence[int], budget: int | None) -> tuple[Method, int]:
    """A method for items of so many tokens within a budget of token-evaluations, and how many it will about take."""
    count, once = len(items), sum(items)
    if budget is None:
        return chosen, chosen.passes(count) * once // count
    fitted = chosen.within(budget * count // once, count)
    return fitted, min(budget, fitted.passes(count) * once // count)
