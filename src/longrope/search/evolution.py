"""The two evolutionary searches: the paper's algorithm and the simple recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from longrope.scaling import Scaling
from longrope.search.genetic_operators import STEP, crossover, mutate
from longrope.search.method import Method, check_population
from longrope.search.protocol import CandidateBatch, Proposals
from longrope.search.space import Space

HALVED = 512 * 1024  # target length in tokens beyond which the paper's population is halved


class Genes(NamedTuple):
    """An individual: factors (or whole numbers that encode them), index of n̂, attention factor."""

    factors: np.ndarray
    start: int
    attention: float


Pool = list[tuple[float, Genes]]  # losses and individuals


@dataclass(frozen=True)
class Paper(Method):
    """LongRoPE's search (algorithm 1, table 10): 64 + 40·(16 + 16) = 1,344 evaluations of factors on a 0.01 grid."""

    population: int = 64
    mutations: int = 16
    crossovers: int = 16
    parents: int = 32
    probability: float = 0.3
    generations: int = 40
    uses_parametrization: ClassVar[bool] = False
    ceiling: ClassVar[float] = 1.25
    schemes: ClassVar[tuple[str, ...]] = ("pi", "ntk", "yarn")

    def with_population(self, population: int) -> Paper:
        """Return the method with another population, and all other numbers in proportion."""
        quarter = check_population(population) // 4
        return Paper(population, quarter, quarter, population // 2, self.probability, self.generations)

    def for_length(self, length: int) -> Paper:
        """Return the method with half of its population beyond 512K tokens (section 4.1 of LongRoPE)."""
        return self.with_population(self.population // 2) if length > HALVED else self

    def passes(self, samples: int) -> int:
        """Return the most forward passes over one sample: 1,344 for each sample with the published numbers."""
        return samples * (self.population + self.generations * (self.mutations + self.crossovers))

    def propose(self, space: Space, starts: Sequence[Scaling], rng: np.random.Generator) -> Proposals:
        """Yield the starts and mutants of them, then generations of mutants and crossovers of the best.

        Arguments are as for `Method.propose`; the paper starts from PI, NTK and YaRN.
        """
        top = int((space.largest - 1) / STEP + 1e-6)

        def encode(start: Scaling) -> Genes:
            genes = np.rint((np.maximum.accumulate(space.clip(start)) - 1) / STEP).astype(np.int64)
            return Genes(genes.clip(max=top), 0, space.attention_factor)

        def mutant(parent: Genes) -> Genes:
            genes = mutate(parent.factors, rng, probability=self.probability, top=top)
            return _redraw(parent._replace(factors=genes), space, rng, self.probability)

        def child() -> Genes:
            a, b = _draw_parents(best, rng)
            return a._replace(factors=crossover(a.factors, b.factors, rng, probability=self.probability))

        generation = [encode(start) for start in starts]
        generation += [mutant(generation[i % len(starts)]) for i in range(self.population - len(starts))]
        best: Pool = []
        for _ in range(self.generations + 1):
            candidates = [
                space.scaling(np.round(1 + STEP * genes.factors, 2).tolist(), *genes[1:]) for genes in generation
            ]
            losses = yield CandidateBatch(candidates, rng.bit_generator.state)
            best = _fittest([*best, *zip([answer.loss for answer in losses], generation, strict=True)], self.parents)
            generation = [mutant(best[rng.integers(len(best))][1]) for _ in range(self.mutations)]
            generation += [child() for _ in range(self.crossovers)]


@dataclass(frozen=True)
class Simple(Method):
    """The simple recipe: keep the best fifth; children are the mean of two of them plus N(0, 0.1) on each factor.

    Args:
        population: Candidates of the first generation.
        kept: Share of the population that is kept.
        sigma: Standard deviation of the noise on each factor.
        generations: Number of generations after the first.
    """

    population: int = 50
    kept: float = 0.2
    sigma: float = 0.1
    generations: int = 100
    uses_parametrization: ClassVar[bool] = False
    ceiling: ClassVar[float] = 1.0
    schemes: ClassVar[tuple[str, ...]] = ("pi", "ntk", "yarn")

    def with_population(self, population: int) -> Simple:
        """Return the method with another population."""
        return Simple(check_population(population), self.kept, self.sigma, self.generations)

    def passes(self, samples: int) -> int:
        """Return the most forward passes over one sample."""
        return samples * (self.population + self.generations * (self.population - self.elite))

    @property
    def elite(self) -> int:
        """Number of candidates that are kept."""
        return max(2, round(self.kept * self.population))

    def propose(self, space: Space, starts: Sequence[Scaling], rng: np.random.Generator) -> Proposals:
        """Yield generations of candidates; arguments as for `Method.propose`."""

        def noisy(factors: np.ndarray) -> np.ndarray:
            moved = np.clip(factors + rng.normal(0, self.sigma, space.pairs), 1.0, space.largest)
            return np.maximum.accumulate(moved)

        def mutant(parent: Genes) -> Genes:
            moved = parent._replace(factors=noisy(parent.factors))
            return _redraw(moved, space, rng, 0.3)

        def child() -> Genes:
            a, b = _draw_parents(best, rng)
            a = _redraw(a, space, rng, 0.3)
            return a._replace(factors=noisy((a.factors + b.factors) / 2))

        first = [Genes(np.maximum.accumulate(space.clip(start)), 0, space.attention_factor) for start in starts]
        generation = first + [mutant(first[i % len(first)]) for i in range(self.population - len(first))]
        best: Pool = []
        for _ in range(self.generations + 1):
            candidates = [space.scaling(genes.factors.tolist(), *genes[1:]) for genes in generation]
            losses = yield CandidateBatch(candidates, rng.bit_generator.state)
            best = _fittest([*best, *zip([answer.loss for answer in losses], generation, strict=True)], self.elite)
            generation = [child() for _ in range(self.population - self.elite)]


def _fittest(pool: Pool, count: int) -> Pool:
    """Return the best of a pool; individuals without a finite loss only if there are no others."""
    finite = [pair for pair in pool if math.isfinite(pair[0])]
    return sorted(finite or pool, key=lambda pair: pair[0])[:count]


def _draw_parents(best: Pool, rng: np.random.Generator) -> tuple[Genes, Genes]:
    """Draw two different individuals of the best, if there are two."""
    a, b = rng.choice(len(best), size=2, replace=False) if len(best) > 1 else (0, 0)
    return best[a][1], best[b][1]


def _redraw(genes: Genes, space: Space, rng: np.random.Generator, probability: float) -> Genes:
    """Replace n̂ and the attention factor, each with a probability and only if it is searched."""
    if len(space.start_tokens) > 1 and rng.random() < probability:
        genes = genes._replace(start=int(rng.integers(len(space.start_tokens))))
    if space.search_attention and rng.random() < probability:
        genes = genes._replace(attention=float(rng.uniform(1.0, space.largest_attention)))
    return genes
