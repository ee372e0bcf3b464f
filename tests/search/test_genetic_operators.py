from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.search.genetic_operators import crossover, mutate

DRAWS, TOP = 20_000, 40
Law = dict[tuple[int, ...], float]
CHANCES = st.sampled_from([0.0, 0.01, 0.3, 0.5, 1.0])
GENES = st.lists(st.integers(0, TOP), min_size=1, max_size=20).map(sorted).map(np.array)
PARENTS = st.integers(1, 20).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, TOP), min_size=n, max_size=n).map(sorted).map(np.array)] * 2)
)


def masks(genes: int, probability: float) -> list[tuple[np.ndarray, float]]:
    """Every choice of genes and its probability."""
    chances = {0: 1 - probability, 1: probability}
    choices = product((0, 1), repeat=genes)
    return [(np.array(choice, dtype=bool), float(np.prod([chances[c] for c in choice]))) for choice in choices]


def law_of_mutation(genes: np.ndarray, probability: float, top: int) -> Law:
    """What drawing the chosen genes again until they do not decrease would come to."""
    law: Counter[tuple[int, ...]] = Counter()
    for mask, chance in masks(len(genes), probability):
        children = []
        for values in product(range(top + 1), repeat=int(mask.sum())):
            child = genes.copy()
            child[mask] = values
            if (np.diff(child) >= 0).all():
                children.append(tuple(child.tolist()))
        for child in children:
            law[child] += chance / len(children)
    return dict(law)


def law_of_crossover(a: np.ndarray, b: np.ndarray, probability: float) -> Law:
    law: Counter[tuple[int, ...]] = Counter()
    for mask, chance in masks(len(a), probability):
        child = np.where(mask, b, a)
        if (np.diff(child) >= 0).all():
            law[tuple(child.tolist())] += chance
    total = sum(law.values())
    return {child: chance / total for child, chance in law.items() if chance}


def assert_follows(law: Law, draws: list[np.ndarray]) -> None:
    """Every frequency within five standard deviations, and nothing that cannot be."""
    assert sum(law.values()) == pytest.approx(1)
    counts = Counter(tuple(draw.tolist()) for draw in draws)
    assert set(counts) <= {child for child, chance in law.items() if chance > 0}
    for child, chance in law.items():
        error = 5 * (chance * (1 - chance) / len(draws)) ** 0.5 + 1e-9
        assert abs(counts[child] / len(draws) - chance) < error, child


@pytest.mark.parametrize(
    ("genes", "top", "probability"),
    [
        ([1, 2, 2], 3, 0.4),
        ([0, 0], 4, 0.3),
        ([2], 5, 0.5),
        ([3, 3, 3], 3, 0.9),
        ([0, 1, 4, 4], 4, 0.6),
        ([0, 2], 2, 1.0),
    ],
)
def test_mutation_follows_the_law_of_rejection(genes: list[int], top: int, probability: float) -> None:
    rng = np.random.default_rng(1)
    draws = [mutate(np.array(genes), rng, probability=probability, top=top) for _ in range(DRAWS)]
    assert_follows(law_of_mutation(np.array(genes), probability, top), draws)


@pytest.mark.parametrize(
    ("a", "b", "probability"),
    [
        ([0, 1, 5, 6], [2, 2, 3, 7], 0.3),
        ([0, 0, 9], [3, 4, 5], 0.5),
        ([1, 2, 3, 4], [5, 6, 7, 8], 0.7),  # nothing but a prefix of a and a suffix of b
        ([5, 6, 7], [1, 2, 3], 0.3),
        ([0, 3, 3, 3, 8], [1, 1, 4, 4, 4], 0.4),
        ([7], [9], 0.25),
        ([1, 5], [2, 3], 0.0),
        ([1, 5], [2, 3], 1.0),
    ],
)
def test_crossover_follows_the_law_of_rejection(a: list[int], b: list[int], probability: float) -> None:
    rng, parents = np.random.default_rng(2), (np.array(a), np.array(b))
    draws = [crossover(*parents, rng, probability=probability) for _ in range(DRAWS)]
    assert_follows(law_of_crossover(*parents, probability), draws)


@given(GENES, CHANCES, st.integers(0, 2**32))
def test_a_mutant_keeps_order_and_bounds(genes: np.ndarray, probability: float, seed: int) -> None:
    before = genes.copy()
    child = mutate(genes, np.random.default_rng(seed), probability=probability, top=TOP)
    assert np.array_equal(genes, before)
    assert child.shape == genes.shape
    assert child.dtype == genes.dtype
    assert child.min() >= 0
    assert child.max() <= TOP
    assert (np.diff(child) >= 0).all()
    chosen = np.random.default_rng(seed).random(len(genes)) < probability
    assert np.array_equal(child[~chosen], genes[~chosen])


@given(PARENTS, CHANCES, st.integers(0, 2**32))
def test_a_child_keeps_order_and_has_its_parents_genes(
    parents: tuple[np.ndarray, np.ndarray], probability: float, seed: int
) -> None:
    a, b = parents
    child = crossover(a, b, np.random.default_rng(seed), probability=probability)
    assert child.shape == a.shape
    assert (np.diff(child) >= 0).all()
    assert ((child == a) | (child == b)).all()


@given(GENES, CHANCES, st.integers(0, 99))
def test_a_child_of_twins_is_their_like(genes: np.ndarray, probability: float, seed: int) -> None:
    assert np.array_equal(crossover(genes, genes.copy(), np.random.default_rng(seed), probability=probability), genes)


@given(PARENTS, st.integers(0, 99))
def test_sure_choices(parents: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    a, b = parents
    assert np.array_equal(crossover(a, b, np.random.default_rng(seed), probability=0.0), a)
    assert np.array_equal(crossover(a, b, np.random.default_rng(seed), probability=1.0), b)
    assert np.array_equal(mutate(a, np.random.default_rng(seed), probability=0.0, top=TOP), a)


def test_hundreds_of_genes_and_a_wide_range_take_one_pass() -> None:
    """Where the released code would reject for ever."""
    rng = np.random.default_rng(0)
    genes = np.sort(rng.integers(0, 64_000, 512))
    other = np.sort(rng.integers(0, 64_000, 512))
    for child in (
        mutate(genes, rng, probability=0.3, top=64_000),
        crossover(genes, other, rng, probability=0.3),
        crossover(np.arange(512), np.arange(512) + 511, rng, probability=0.001),
    ):
        assert (np.diff(child) >= 0).all()
