"""The two evolutionary searches: the paper's algorithm and the simple recipe.

A method is a small dataclass; its ``converse`` is a generator that yields an `CandidateBatch` and is sent the answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from longrope.errors import LongRopeError
from longrope.scaling import Scaling
from longrope.search.genetic_operators import STEP, crossover, mutate
from longrope.search.protocol import CandidateBatch, Proposals
from longrope.search.space import Space


class Genes(NamedTuple):
    """An individual: factors (or whole numbers that stand for them), index of n̂, attention factor."""

    factors: np.ndarray
    start: int
    attention: float


Pool = list[tuple[float, Genes]]


@dataclass(frozen=True)
class Paper:
    """LongRoPE's search (algorithm 1, table 10): 64 + 40·(16 + 16) = 1,344 evaluations of factors on a 0.01 grid."""

    population: int = 64
    mutations: int = 16
    crossovers: int = 16
    parents: int = 32
    probability: float = 0.3
    generations: int = 40
    shaped: ClassVar[bool] = False
    ceiling: ClassVar[float] = 1.25
    parametrization: ClassVar[str] = "free"
    starts: ClassVar[tuple[str, ...]] = ("pi", "ntk", "yarn")

    def sized(self, population: int) -> Paper:
        """The same in other proportions: the paper halves its 64 beyond 512K tokens."""
        quarter = sized(population) // 4
        return Paper(population, quarter, quarter, population // 2, self.probability, self.generations)

    def within(self, passes: int, items: int) -> Paper:
        """Itself: a smaller budget only ends it earlier."""
        return self

    def passes(self, items: int) -> int:
        """The most forward passes over one item: 1,344 candidates on all items with the published numbers."""
        return items * (self.population + self.generations * (self.mutations + self.crossovers))

    def converse(self, space: Space, starts: Sequence[Scaling], rng: np.random.Generator) -> Proposals:
        """Generations of candidates: the starts and mutants of them, then mutants and crossovers of the best.

        Args:
            space: bounds, attention factors and start tokens.
            starts: PI, NTK and YaRN in the paper; moved into the space.
            rng: where all draws come from.
        """
        top = int((space.largest - 1) / STEP + 1e-6)

        def first(start: Scaling) -> Genes:
            genes = np.rint((np.maximum.accumulate(space.inside(start)) - 1) / STEP).astype(np.int64)
            return Genes(genes.clip(max=top), 0, space.attention_factor)

        def mutant(parent: Genes) -> Genes:
            genes = mutate(parent.factors, rng, probability=self.probability, top=top)
            return _redrawn(parent._replace(factors=genes), space, rng, self.probability)

        def child() -> Genes:
            a, b = _parents(best, rng)
            return a._replace(factors=crossover(a.factors, b.factors, rng, probability=self.probability))

        generation = [first(start) for start in starts]
        generation += [mutant(generation[i % len(starts)]) for i in range(self.population - len(starts))]
        best: Pool = []
        for _ in range(self.generations + 1):
            found = [space.scaling(np.round(1 + STEP * one.factors, 2).tolist(), *one[1:]) for one in generation]
            answers = yield CandidateBatch(found, rng.bit_generator.state)
            best = _fittest([*best, *zip([one.loss for one in answers], generation, strict=True)], self.parents)
            generation = [mutant(best[rng.integers(len(best))][1]) for _ in range(self.mutations)]
            generation += [child() for _ in range(self.crossovers)]


@dataclass(frozen=True)
class Simple:
    """The simple recipe: the best fifth is kept, children are the mean of two of it plus N(0, 0.1) a factor."""

    population: int = 50
    kept: float = 0.2
    sigma: float = 0.1
    generations: int = 100
    shaped: ClassVar[bool] = False
    ceiling: ClassVar[float] = 1.0
    parametrization: ClassVar[str] = "free"
    starts: ClassVar[tuple[str, ...]] = ("pi", "ntk", "yarn")

    def sized(self, population: int) -> Simple:
        """The same with another population."""
        return Simple(sized(population), self.kept, self.sigma, self.generations)

    def within(self, passes: int, items: int) -> Simple:
        """Itself: a smaller budget only ends it earlier."""
        return self

    def passes(self, items: int) -> int:
        """The most forward passes over one item."""
        return items * (self.population + self.generations * (self.population - self.elite))

    @property
    def elite(self) -> int:
        """How many are kept."""
        return max(2, round(self.kept * self.population))

    def converse(self, space: Space, starts: Sequence[Scaling], rng: np.random.Generator) -> Proposals:
        """Generations of candidates; arguments as for `Paper.converse`."""

        def noisy(factors: np.ndarray) -> np.ndarray:
            moved = np.clip(factors + rng.normal(0, self.sigma, space.pairs), 1.0, space.largest)
            return np.maximum.accumulate(moved)

        def mutant(parent: Genes) -> Genes:
            moved = parent._replace(factors=noisy(parent.factors))
            return _redrawn(moved, space, rng, 0.3)

        def child() -> Genes:
            a, b = _parents(best, rng)
            a = _redrawn(a, space, rng, 0.3)
            return a._replace(factors=noisy((a.factors + b.factors) / 2))

        first = [Genes(np.maximum.accumulate(space.inside(one)), 0, space.attention_factor) for one in starts]
        generation = first + [mutant(first[i % len(first)]) for i in range(self.population - len(first))]
        best: Pool = []
        for _ in range(self.generations + 1):
            answers = yield CandidateBatch(
                [space.scaling(one.factors.tolist(), *one[1:]) for one in generation], rng.bit_generator.state
            )
            best = _fittest([*best, *zip([one.loss for one in answers], generation, strict=True)], self.elite)
            generation = [child() for _ in range(self.population - self.elite)]


def sized(population: int) -> int:
    """The population, if it is one.

    Raises:
        LongRopeError: if it is smaller than 4.
    """
    if population < 4:
        raise LongRopeError(f"population = {population} is too small; use at least 4")
    return population


def _fittest(pool: Pool, count: int) -> Pool:
    """The best of a pool; those without a finite loss only if there are no others."""
    finite = [one for one in pool if math.isfinite(one[0])]
    return sorted(finite or pool, key=lambda one: one[0])[:count]


def _parents(best: Pool, rng: np.random.Generator) -> tuple[Genes, Genes]:
    """Two different ones of the best, if there are two."""
    a, b = rng.choice(len(best), size=2, replace=False) if len(best) > 1 else (0, 0)
    return best[a][1], best[b][1]


def _redrawn(genes: Genes, space: Space, rng: np.random.Generator, probability: float) -> Genes:
    """Another n̂ and another attention factor, each with some probability where it is searched."""
    if len(space.start_tokens) > 1 and rng.random() < probability:
        genes = genes._replace(start=int(rng.integers(len(space.start_tokens))))
    if space.attention and rng.random() < probability:
        genes = genes._replace(attention=float(rng.uniform(1.0, space.largest_attention)))
    return genes
