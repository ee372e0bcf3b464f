"""The two evolutionary searches: the paper's algorithm and the simple recipe.

A method is a small dataclass; its ``candidates`` is a generator that yields a generation and is sent its losses.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longrope.errors import LongRopeError
from longrope.rope import Scaling
from longrope.search.operators import STEP, crossover, mutate
from longrope.search.space import Space

Candidates = Generator[list[Scaling], list[float], None]
Genes = tuple[np.ndarray, int]


@dataclass(frozen=True)
class Paper:
    """LongRoPE's search (algorithm 1, table 10): 64 + 40·(16 + 16) = 1,344 evaluations of factors on a 0.01 grid."""

    population: int = 64
    mutations: int = 16
    crossovers: int = 16
    parents: int = 32
    probability: float = 0.3
    generations: int = 40
    ceiling: ClassVar[float] = 1.25

    def sized(self, population: int) -> Paper:
        """The same in other proportions: the paper halves its 64 beyond 512K tokens."""
        if population < 4:
            raise LongRopeError(f"population = {population} is too small; use at least 4")
        quarter = population // 4
        return Paper(population, quarter, quarter, population // 2, self.probability, self.generations)

    @property
    def evaluations(self) -> int:
        """The most candidates that it asks for."""
        return self.population + self.generations * (self.mutations + self.crossovers)

    def candidates(self, space: Space, starts: Sequence[Scaling], rng: np.random.Generator) -> Candidates:
        """Generations of candidates: the starts and mutants of them, then mutants and crossovers of the best.

        Args:
            space: bounds, attention factor and start tokens.
            starts: PI, NTK and YaRN in the paper; moved into the space.
            rng: where all draws come from.
        """
        top = int((space.largest - 1) / STEP + 1e-6)

        def mutant(parent: Genes) -> Genes:
            genes = mutate(parent[0], rng, probability=self.probability, top=top)
            return genes, draw_start(space, parent[1], rng, probability=self.probability)

        def child() -> Genes:
            a, b = rng.choice(len(best), size=2, replace=False) if len(best) > 1 else (0, 0)
            return crossover(best[a][1][0], best[b][1][0], rng, probability=self.probability), best[a][1][1]

        first = [(np.rint((space.inside(start) - 1) / STEP).astype(np.int64).clip(max=top), 0) for start in starts]
        generation = first + [mutant(first[i % len(first)]) for i in range(self.population - len(first))]
        best: list[tuple[float, Genes]] = []
        for _ in range(self.generations + 1):
            losses = yield [space.scaling(np.round(1 + STEP * genes, 2).tolist(), n) for genes, n in generation]
            best = _fittest([*best, *zip(losses, generation, strict=True)], self.parents)
            generation = [mutant(best[rng.integers(len(best))][1]) for _ in range(self.mutations)]
            generation += [child() for _ in range(self.crossovers)]


@dataclass(frozen=True)
class Simple:
    """The simple recipe: the best fifth is kept, children are the mean of two of it plus N(0, 0.1) a factor."""

    population: int = 50
    kept: float = 0.2
    sigma: float = 0.1
    generations: int = 100
    ceiling: ClassVar[float] = 1.0

    def sized(self, population: int) -> Simple:
        """The same with another population."""
        if population < 4:
            raise LongRopeError(f"population = {population} is too small; use at least 4")
        return Simple(population, self.kept, self.sigma, self.generations)

    @property
    def evaluations(self) -> int:
        """The most candidates that it asks for."""
        return self.population + self.generations * (self.population - self.elite)

    @property
    def elite(self) -> int:
        """How many are kept."""
        return max(2, round(self.kept * self.population))

    def candidates(self, space: Space, starts: Sequence[Scaling], rng: np.random.Generator) -> Candidates:
        """Generations of candidates; arguments as for `Paper.candidates`."""

        def noisy(factors: np.ndarray) -> np.ndarray:
            moved = np.clip(factors + rng.normal(0, self.sigma, space.pairs), 1.0, space.largest)
            return np.maximum.accumulate(moved)

        def child() -> Genes:
            a, b = rng.choice(len(best), size=2, replace=False) if len(best) > 1 else (0, 0)
            start = draw_start(space, best[a][1][1], rng, probability=0.3)
            return noisy((best[a][1][0] + best[b][1][0]) / 2), start

        first = [(space.inside(start), 0) for start in starts]
        rest = self.population - len(first)
        generation = first + [
            (noisy(first[i % len(first)][0]), draw_start(space, 0, rng, probability=0.3)) for i in range(rest)
        ]
        best: list[tuple[float, tuple[np.ndarray, int]]] = []
        for _ in range(self.generations + 1):
            losses = yield [space.scaling(factors.tolist(), n) for factors, n in generation]
            best = _fittest([*best, *zip(losses, generation, strict=True)], self.elite)
            generation = [child() for _ in range(self.population - self.elite)]


PRESETS: dict[str, Paper | Simple] = {"paper": Paper(), "simple": Simple()}


def _fittest(pool: list[tuple[float, Genes]], count: int) -> list[tuple[float, Genes]]:
    """The best of a pool; those without a finite loss only if there are no others."""
    finite = [one for one in pool if math.isfinite(one[0])]
    return sorted(finite or pool, key=lambda one: one[0])[:count]


def draw_start(space: Space, start: int, rng: np.random.Generator, *, probability: float) -> int:
    """Another index of the space's start tokens with some probability, else the same."""
    if len(space.start_tokens) > 1 and rng.random() < probability:
        return int(rng.integers(len(space.start_tokens)))
    return start
