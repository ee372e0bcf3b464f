"""CMA-ES on the coordinates of a space, by the ``cmaes`` package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from cmaes import CMA

from longrope.scaling import Scaling
from longrope.search.evolution import sized
from longrope.search.protocol import CandidateBatch, Proposals
from longrope.search.space import Space


@dataclass(frozen=True)
class Cma:
    """Covariance matrix adaptation (Hansen 2016): the starts first, then samples around the best of them.

    Args:
        population: samples a generation; 4 + 3·ln n for n coordinates if None.
        sigma: first standard deviation, in units of the space's spread.
        generations: the most of them.
    """

    population: int | None = None
    sigma: float = 0.15
    generations: int = 40
    shaped: ClassVar[bool] = True
    ceiling: ClassVar[float] = 2.0
    parametrization: ClassVar[str] = "spline"
    starts: ClassVar[tuple[str, ...]] = ("yarn", "heuristic")

    def sized(self, population: int) -> Cma:
        """The same with another population."""
        return replace(self, population=sized(population))

    def within(self, passes: int, items: int) -> Cma:
        """Itself: a smaller budget only ends it earlier."""
        return self

    def passes(self, items: int) -> int:
        """About how many forward passes over one item it costs."""
        return items * self.generations * (self.population or 12)

    def converse(self, space: Space, starts: Sequence[Scaling], rng: np.random.Generator) -> Proposals:
        """The starts, then generations of samples; arguments as for `Paper.converse`."""
        candidates = [space.at(space.coordinates(start)) for start in starts]
        answers = yield CandidateBatch(candidates)
        best = min(range(len(answers)), key=lambda i: answers[i].loss)
        yield from self.sample(space, space.coordinates(candidates[best]), rng)

    def sample(self, space: Space, x: np.ndarray, rng: np.random.Generator) -> Proposals:
        """Generations of samples around coordinates."""
        (lower, upper), unit = space.bounds, space.spread
        cma = CMA(
            mean=x / unit,
            sigma=self.sigma,
            bounds=np.stack([lower / unit, upper / unit], axis=1),
            seed=int(rng.integers(2**32)),
            population_size=self.population,
        )
        for _ in range(self.generations):
            points = [cma.ask() for _ in range(cma.population_size)]
            answers = yield CandidateBatch([space.at(point * unit) for point in points], _state(cma))
            losses = [answer.loss for answer in answers]
            worst = max((loss for loss in losses if math.isfinite(loss)), default=0.0)
            cma.tell([(point, min(loss, worst + 1)) for point, loss in zip(points, losses, strict=True)])
            if cma.should_stop():
                return


def _state(cma: CMA) -> dict[str, Any]:
    """All that decides the next generation, as JSON values: mean, step size, paths, covariance, random numbers."""
    state = vars(cma)
    numbers = {name: np.asarray(state[f"_{name}"]).tolist() for name in ("mean", "sigma", "p_sigma", "pc", "C", "g")}
    kind, keys, *rest = state["_rng"].get_state()
    return {**numbers, "rng": [kind, keys.tolist(), *rest]}
