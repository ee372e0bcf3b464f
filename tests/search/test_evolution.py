from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from searching import LENGTH, ROPE, STARTS, TARGET, generations, quadratic, search_with, space_of

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.schemes import scheme
from longrope.search.evolution import Genes, Paper, Simple, _redraw
from longrope.search.space import START_TOKENS, Space

FULL = {"paper": Paper(), "simple": Simple()}
SMALL = [Paper(generations=4).with_population(12), Simple(generations=4).with_population(12)]
KINDS = pytest.mark.parametrize("method", SMALL, ids=["paper", "simple"])


def test_the_presets_have_the_published_numbers() -> None:
    paper, simple = Paper(), Simple()
    assert (paper.population, paper.mutations, paper.crossovers, paper.parents) == (64, 16, 16, 32)
    assert (paper.probability, paper.generations, paper.ceiling) == (0.3, 40, 1.25)
    assert (simple.population, simple.generations, simple.kept, simple.sigma) == (50, 100, 0.2, 0.1)
    assert (simple.ceiling, simple.elite) == (1.0, 10)


@pytest.mark.parametrize(("name", "count"), [("paper", 1344), ("simple", 50 + 100 * 40)])
def test_the_number_of_candidates(name: str, count: int) -> None:
    method = FULL[name]
    asked = generations(method, space_of(method))
    assert sum(map(len, asked)) == method.passes(1) == count
    assert method.passes(3) == 3 * count
    assert method.within(10, 1) == method
    assert len(asked) == method.generations + 1


@pytest.mark.parametrize("population", [4, 5, 7, 32, 33])
@KINDS
def test_another_population(method: Paper | Simple, population: int) -> None:
    sized = method.with_population(population)
    asked = generations(sized, space_of(sized))
    assert len(asked[0]) == population
    assert sum(map(len, asked)) == sized.passes(1)


@example(3)
@example(4)
@given(st.integers(-10, 300))
def test_a_population_is_4_or_more(population: int) -> None:
    if population < 4:
        for method in (Paper(), Simple()):
            with pytest.raises(LongRopeError, match=f"^population = {population}: too small"):
                method.with_population(population)
        return
    paper, simple = Paper().with_population(population), Simple().with_population(population)
    assert paper.population == simple.population == population
    assert (paper.mutations, paper.crossovers, paper.parents) == (population // 4, population // 4, population // 2)
    assert (paper.probability, paper.generations) == (0.3, 40)
    assert (simple.kept, simple.sigma, simple.generations) == (0.2, 0.1, 100)
    assert simple.elite == max(2, round(population / 5))


def assert_inside(scaling: Scaling, method: Paper | Simple, space: Space) -> None:
    factors = np.array(scaling.factors)
    assert len(factors) == space.pairs
    assert factors.min() >= 1
    assert factors.max() <= space.largest
    assert (np.diff(factors) >= 0).all()
    if isinstance(method, Paper):
        assert np.abs(factors * 100 - np.rint(factors * 100)).max() < 1e-9
        assert all(factor == round(factor, 2) for factor in scaling.factors)
    assert scaling.start_tokens in space.start_tokens
    assert (scaling.attention_factor, scaling.length, scaling.scheme) == (1.25, space.length, "searched")


@settings(max_examples=25)
@given(
    st.sampled_from(SMALL),
    st.integers(1, 40),
    st.integers(16, 300),
    st.floats(1.1, 40),
    st.sampled_from(["pi", "ntk", "yarn", "heuristic", "llama3"]),
    st.integers(0, 99),
)
def test_all_candidates_are_in_the_space(
    method: Paper | Simple, pairs: int, original: int, scale: float, name: str, seed: int
) -> None:
    rope, length = Rope(dim=2 * pairs, base=10000.0, original_length=original), int(original * scale)
    space = space_of(method, rope, length, attention_factor=1.25, start_tokens=(0, 3, 9))
    starts = [scheme(one, rope, length) for one in ("pi", "ntk", "yarn", name)]
    rng = np.random.default_rng(seed)
    for generation in generations(method, space, loss=lambda _: rng.random(), starts=starts, seed=seed):
        for scaling in generation:
            assert_inside(scaling, method, space)


@pytest.mark.parametrize("original", [33, 64, 100, 77])
@KINDS
def test_starts_beyond_the_ceiling_are_moved_into_the_space(method: Paper | Simple, original: int) -> None:
    rope = Rope(dim=16, base=10000.0, original_length=original)
    space = space_of(method, rope, 1000, attention_factor=1.25)
    for generation in generations(method, space, loss=sum_of_factors, starts=[Scaling([99.0] * 8)]):
        for scaling in generation:
            assert_inside(scaling, method, space)


def sum_of_factors(scaling: Scaling) -> float:
    return sum(scaling.factors)


@KINDS
def test_the_starts_are_asked_for_first(method: Paper | Simple) -> None:
    first = generations(method, space_of(method))[0]
    for start, asked in zip(STARTS, first, strict=False):
        np.testing.assert_allclose(asked.factors, start.factors, atol=0.005 if isinstance(method, Paper) else 1e-12)
        assert asked.start_tokens == 0
    assert len(set(first)) > len(STARTS)


@pytest.mark.parametrize("offered", [(0,), (4,), (0, 8), START_TOKENS])
@KINDS
def test_start_tokens_are_searched_when_offered(method: Paper | Simple, offered: tuple[int, ...]) -> None:
    asked = generations(method, space_of(method, start_tokens=offered))
    chosen = {scaling.start_tokens for generation in asked for scaling in generation}
    assert chosen <= set(offered)
    assert len(chosen) >= min(len(offered), 4)


def redrawn(space: Space, rng: np.random.Generator, probability: float) -> Genes:
    return _redraw(Genes(np.ones(8), 1, 1.1), space, rng, probability)


def test_start_tokens_are_drawn_uniformly_with_their_probability() -> None:
    space, rng = Space(ROPE, LENGTH, start_tokens=(0, 1, 2, 4)), np.random.default_rng(0)
    counts = np.bincount([redrawn(space, rng, 0.4).start for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(counts, [0.1, 0.7, 0.1, 0.1], atol=0.015)


def test_attention_factors_are_drawn_uniformly_with_their_probability() -> None:
    space, rng = Space(ROPE, LENGTH, search_attention=True), np.random.default_rng(0)
    drawn = np.array([redrawn(space, rng, 0.4).attention for _ in range(20_000)])
    new = drawn[drawn != 1.1]
    assert len(new) / 20_000 == pytest.approx(0.4, abs=0.015)
    top = 1 + 0.2 * math.log(8)
    np.testing.assert_allclose(np.quantile(new, [0, 0.25, 0.5, 0.75, 1]), np.linspace(1, top, 5), atol=0.012)


def test_where_there_is_nothing_to_choose_nothing_is_drawn() -> None:
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    assert redrawn(Space(ROPE, LENGTH), rng, 1.0)[1:] == (1, 1.1)
    assert rng.bit_generator.state == state


@pytest.mark.parametrize("offered", [False, True])
@KINDS
def test_attention_factors_are_searched_when_offered(method: Paper | Simple, offered: bool) -> None:
    space = space_of(method, attention_factor=1.1, search_attention=offered)
    asked = generations(method, space)
    chosen = {scaling.attention_factor for generation in asked for scaling in generation}
    assert {scaling.attention_factor for scaling in asked[0][:3]} == {1.1}
    assert all(1 <= one <= space.largest_attention for one in chosen)
    assert len(chosen) > 5 if offered else chosen == {1.1}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FULL)
def test_the_best_of_what_is_kept_never_gets_worse(name: str, seed: int, tmp_path: Path) -> None:
    seen: list[float] = []
    outcome = search_with(
        tmp_path / "j", FULL[name], seed=seed, tokens=600, on_progress=lambda progress: seen.append(progress.loss)
    )
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == len(outcome.ranked) == 600
    assert outcome.ranked[0][0] == seen[-1] == quadratic(outcome.best)
    assert list(outcome.ranked) == sorted(outcome.ranked, key=lambda one: one[0])


@pytest.mark.parametrize("seed", range(3))
def test_the_paper_preset_comes_near_the_optimum_and_beats_yarn(seed: int, tmp_path: Path) -> None:
    def distance(scaling: Scaling) -> float:
        return float(((np.log(scaling.factors) - np.log(TARGET)) ** 2).mean())

    best = search_with(tmp_path / "j", Paper(), objective=distance, seed=seed).ranked[0][0]
    losses = [distance(start) for start in STARTS]
    assert best < 0.003 < 0.2 * min(losses)


@pytest.mark.parametrize("seed", range(2))
def test_the_simple_preset_beats_its_starts(seed: int, tmp_path: Path) -> None:
    best = search_with(tmp_path / "j", Simple(), seed=seed, tokens=1500).ranked[0][0]
    assert best < 0.5 * min(quadratic(start) for start in STARTS)


def test_start_tokens_are_found(tmp_path: Path) -> None:
    assert search_with(tmp_path / "j", Paper(), start_tokens=START_TOKENS).best.start_tokens == 8


def still(method: Paper | Simple) -> Paper | Simple:
    """The same without any change from parent to child."""
    if isinstance(method, Paper):
        return Paper(12, 3, 3, 6, probability=0.0, generations=4)
    return Simple(12, sigma=0.0, generations=4)


@KINDS
def test_children_come_from_the_best(method: Paper | Simple) -> None:
    """Without mutation, and of one candidate that is far better, there are only copies of it and mixtures."""
    asked = generations(still(method), space_of(method), loss=lambda scaling: scaling.factors[3])
    best = min(asked[0], key=lambda scaling: scaling.factors[3])
    assert best in [scaling for generation in asked[1:] for scaling in generation]


@KINDS
def test_what_is_not_finite_has_no_children(method: Paper | Simple) -> None:
    """As long as anything is finite: here one of twelve candidates."""
    starts = [Scaling([1.0 + i / 2] * 8) for i in range(12)]

    def only_the_seventh(scaling: Scaling) -> float:
        return 1.0 if scaling.factors == starts[6].factors else math.inf

    for seed in range(5):
        asked = generations(still(method), space_of(method), loss=only_the_seventh, starts=starts, seed=seed)
        assert {scaling.factors for generation in asked[1:] for scaling in generation} == {starts[6].factors}


def test_children_of_the_simple_recipe_are_means_of_two() -> None:
    """Without noise; of starts that are all 2 and all 6, they are all 2, 4 or 6, and then means of those."""
    starts, space = [Scaling([2.0] * 8), Scaling([6.0] * 8)], space_of(Simple())
    asked = generations(Simple(20, kept=1.0, sigma=0.0, generations=1), space, starts=starts)
    assert {one.factors for one in asked[0]} == {(2.0,) * 8, (6.0,) * 8}
    asked = generations(Simple(20, kept=0.5, sigma=0.0, generations=1), space, starts=starts, loss=lambda _: 1.0)
    assert {one.factors for one in asked[1]} == {(2.0,) * 8, (4.0,) * 8, (6.0,) * 8}


def test_the_noise_of_the_simple_recipe_is_normal() -> None:
    rope = Rope(dim=2, base=1e4, original_length=256)  # one pair: nothing to sort, and no bound is near
    method = Simple(4000, generations=0)
    (asked,) = generations(method, space_of(method, rope), starts=[Scaling([4.0])])
    moved = np.array([one.factors[0] for one in asked[1:]]) - 4.0
    assert moved.mean() == pytest.approx(0, abs=0.01)
    assert moved.std() == pytest.approx(0.1, abs=0.005)
    assert np.abs(moved).max() > 0.25


@pytest.mark.parametrize("method", [Paper(2000, 0, 0, 4, generations=0), Simple(2000, generations=0)])
def test_mutants_have_other_start_tokens_with_a_probability_of_three_tenths(method: Paper | Simple) -> None:
    """Of which half are those that they had."""
    (asked,) = generations(method, space_of(method, start_tokens=(0, 8)), starts=STARTS[:1])
    assert np.mean([one.start_tokens == 8 for one in asked[1:]]) == pytest.approx(0.15, abs=0.04)


def test_three_tenths_of_the_papers_genes_are_drawn_anew() -> None:
    """And a few of them as they were."""
    method = Paper(400, 0, 0, 4, generations=0)
    (asked,) = generations(method, space_of(method), starts=[Scaling(np.linspace(2, 8, 8).tolist())])
    changed = np.array([np.not_equal(one.factors, asked[0].factors) for one in asked[1:]])
    assert 0.25 < changed.mean() <= 0.31


@KINDS
def test_the_same_seed_asks_the_same(method: Paper | Simple) -> None:
    one, again, other = (generations(method, space_of(method), seed=seed) for seed in (3, 3, 4))
    assert one == again
    assert one != other


def test_any_number_of_starts() -> None:
    for starts in (STARTS[:1], STARTS * 2):
        for method in SMALL:
            first = generations(method, space_of(method), starts=starts)[0]
            assert len(first) == 12
