"""The base class of search methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.search.protocol import BACKWARD_COST, Proposals
from longrope.search.space import Space


class Method(ABC):
    """A search method: a small frozen dataclass that proposes candidates.

    Attributes:
        uses_gradient: Whether the method asks for gradients. Costs and memory checks then count backward passes.
        uses_contexts: Whether the method asks for losses in frozen contexts.
        draws: Whether the search depends on its seed.
        uses_parametrization: Whether the method moves through the coordinates of the space's parametrization.
        ceiling: Largest factor by default, in units of the scale s.
        parametrization: Parametrization by default, a key of `longrope.search.parametrizations.PARAMETRIZATIONS`.
        schemes: Names of the schemes that the search starts from by default.
        without_gradient: Name of the method that takes its place where a model lets no gradient through; None refuses
            such a model.
    """

    uses_gradient: ClassVar[bool] = False
    uses_contexts: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    uses_parametrization: ClassVar[bool] = True
    ceiling: ClassVar[float] = 2.0
    parametrization: ClassVar[str] = "free"
    schemes: ClassVar[tuple[str, ...]] = ("yarn", "heuristic")
    without_gradient: ClassVar[str | None] = None

    @abstractmethod
    def propose(self, space: Space, starts: Sequence[Scaling], rng: np.random.Generator) -> Proposals:
        """Yield batches of candidates and receive their losses, until the search is over.

        Args:
            space: Bounds, coordinates, attention factors and start tokens of the candidates.
            starts: Candidates that the search starts from. The method moves them into the space.
            rng: Source of all random numbers.
        """

    @abstractmethod
    def passes(self, samples: int) -> int:
        """Estimate the cost of the search, in forward passes over one sample.

        A method that uses contexts takes ``context_cost`` too, as do the next two methods. It is the cost of a pass in
        a frozen context as a part of that of a full pass; 0 without such contexts.

        Args:
            samples: Number of samples of the objective.
        """

    def gradient_steps(self, samples: int, context_cost: float = 0.0) -> int:
        """Return how many of the passes are forward and backward passes over one sample.

        By default these are all passes of a method that uses gradients, and none of another method.
        """
        return self.passes(samples) // BACKWARD_COST if self.uses_gradient else 0

    def within(self, passes: int, samples: int) -> Method:
        """Return the method fitted to a budget of forward passes over one sample.

        By default the method stays as it is, and a smaller budget only ends it earlier.
        """
        return self

    def start_cost(self, context_cost: float = 0.0) -> float:
        """Return what each start adds to the passes over a sample; 0 where the starts are part of the population.

        Args:
            context_cost: Cost of a pass in a frozen context as a part of that of a full pass; 0 without such contexts.
        """
        return 0.0

    def for_length(self, length: int) -> Method:
        """Return the method with its default settings for a target length in tokens."""
        return self

    def with_population(self, population: int) -> Method:
        """Return the method with another population (a gradient method: another number of steps).

        Raises:
            LongRopeError: If the method has none, or the population is too small.
        """
        name = type(self).__name__
        raise LongRopeError(f"population = {population}: the method {name} has no population. Leave it out.")

    def make_space(self, rope: Rope, length: int, **fields: Any) -> Space:
        """Return the space of a rope and target length with the method's default ceiling and parametrization.

        Args:
            rope: Geometry of the model.
            length: Target length in tokens.
            fields: Other fields of `Space`.
        """
        return Space(rope, length, **{"ceiling": self.ceiling, "parametrization": self.parametrization, **fields})


def check_population(population: int) -> int:
    """Return the population if it is at least 4.

    Raises:
        LongRopeError: If it is smaller.
    """
    if population < 4:
        raise LongRopeError(f"population = {population}: too small. Use at least 4.")
    return population
