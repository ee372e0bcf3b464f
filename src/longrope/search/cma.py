"""CMA-ES on the coordinates of a space, by the ``cmaes`` package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from cmaes import CMA

from longrope.scaling import Scaling
from longrope.search.method import Method, check_population
from longrope.search.protocol import CandidateBatch, Proposals
from longrope.search.space import Space


@dataclass(frozen=True)
class Cma(Method):
    """Covariance matrix adaptation (Hansen 2016): the starts first, then samples around the best of them.

    Args:
        population: Candidates of a generation; None is 4 + 3·ln n for n coordinates.
        sigma: First standard deviation, in units of the space.
        generations: Most generations.
    """

    population: int | None = None
    sigma: float = 0.15
    generations: int = 40
    parametrization: ClassVar[str] = "spline"
    uses_contexts: ClassVar[bool] = True

    def with_population(self, population: int) -> Cma:
        """Return the method with another population."""
        return replace(self, population=check_population(population))

    def passes(self, samples: int, context_cost: float = 0.0) -> int:
        """Estimate the cost in forward passes over one sample."""
        population = self.population or 12
        each = 1 + population * context_cost if context_cost else population
        return math.ceil(round(samples * self.generations * each, 6))

    def within(self, passes: int, samples: int, context_cost: float = 0.0) -> Cma:
        """Return the method as it is: a smaller budget only ends it earlier."""
        return self

    def propose(self, space: Space, starts: Sequence[Scaling], rng: np.random.Generator) -> Proposals:
        """Yield the starts, then generations of candidates; arguments as for `Method.propose`."""
        points = [space.coordinates(start) for start in starts]
        losses = yield CandidateBatch([space.candidate(point) for point in points])
        best = min(range(len(losses)), key=lambda i: losses[i].loss)
        yield from self.propose_around(space, points[best], losses[best].loss, rng)

    def propose_around(self, space: Space, x: np.ndarray, loss: float, rng: np.random.Generator) -> Proposals:
        """Yield generations of candidates around coordinates, then the best one of each for a full pass.

        A generation is ranked in the frozen contexts of the best candidate so far, where the objective has them.

        Args:
            space: Space of the candidates.
            x: Coordinates of the first mean, ``(coordinates,)``.
            loss: Mean loss of the first mean over all samples.
            rng: Source of the seed.
        """
        unit = space.unit
        lower, upper = space.bounds
        cma = CMA(
            mean=x / unit,
            sigma=self.sigma,
            bounds=np.stack([lower / unit, upper / unit], axis=1),
            seed=int(rng.integers(2**32)),
            population_size=self.population,
        )
        best = (loss, space.candidate(x))
        for _ in range(self.generations):
            points = [cma.ask() for _ in range(cma.population_size)]
            candidates, state = [space.candidate(point * unit) for point in points], {"generation": cma.generation}
            answers = yield CandidateBatch(candidates, state, reference=best[1])
            leader = candidates[min(range(len(answers)), key=lambda i: answers[i].loss)]
            (answer,) = yield CandidateBatch([leader], state, reference=leader)
            best = min(best, (answer.loss, leader), key=lambda pair: pair[0])
            losses = [answer.loss for answer in answers]
            worst = max((loss for loss in losses if math.isfinite(loss)), default=0.0)
            cma.tell([(point, min(loss, worst + 1)) for point, loss in zip(points, losses, strict=True)])
            if cma.should_stop():
                return
