from __future__ import annotations

import inspect
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from searching import ROPE, STARTS, TARGET, asks, generations, quadratic, search_with, space_of

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.schemes import scheme
from longrope.search import cma as cma_module
from longrope.search.cma import Cma
from longrope.search.parametrizations import PARAMETRIZATIONS
from longrope.search.protocol import CandidateLoss

METHOD = Cma(population=6, generations=6)


@pytest.mark.parametrize("seed", range(3))
def test_it_comes_much_nearer_than_its_start(tmp_path: Path, seed: int) -> None:
    outcome = search_with(tmp_path / "j", Cma(), seed=seed, parametrization="free")
    assert outcome.ranked[0][0] - 0.008 < 0.1 * (min(map(quadratic, STARTS)) - 0.008)  # 0.008 is that of n̂ = 0


def test_a_target_of_its_form_is_found(tmp_path: Path) -> None:
    def distance(scaling: Scaling) -> float:
        return float(np.abs(np.log(scaling.factors) - np.log(TARGET)).max())

    found = search_with(tmp_path / "j", Cma(generations=80), objective=distance, starts=STARTS[:1]).best
    np.testing.assert_allclose(np.log(found.factors), np.log(TARGET), atol=0.1)


def test_the_starts_are_asked_for_first_and_the_best_of_them_is_the_middle() -> None:
    """With hardly any spread, all samples are the best start; after them comes the leader of these again."""
    space = space_of(METHOD, parametrization="free")
    asked = generations(Cma(population=6, sigma=1e-6, generations=1), space)
    assert len(asked) == 3
    for start, first in zip(STARTS, asked[0], strict=True):
        np.testing.assert_allclose(first.factors, start.factors, rtol=1e-9)
    best = min(STARTS, key=quadratic)
    for sample in [*asked[1], *asked[2]]:
        np.testing.assert_allclose(sample.factors, best.factors, rtol=1e-3)


def test_a_generation_refers_to_the_best_so_far_and_its_leader_to_itself() -> None:
    """In the losses of full passes, which may rank the leaders otherwise than contexts do."""
    space = space_of(METHOD)
    full = iter([0.5, 0.7, 0.4, 0.6, 0.3, 0.8])
    conversation = METHOD.propose(space, STARTS, np.random.default_rng(0))
    starts = next(conversation)
    assert starts.reference is None
    ask = conversation.send([CandidateLoss(loss) for loss in (0.9, 0.6, 0.7)])
    np.testing.assert_allclose(ask.reference.factors, space.candidate(space.coordinates(STARTS[1])).factors, rtol=1e-12)
    best, best_loss = ask.reference, 0.6
    for generation, loss in enumerate(full):
        assert (ask.reference, len(ask.candidates), ask.state["generation"]) == (best, 6, generation)
        in_contexts = [0.1 * ((place + generation) % 6) for place in range(6)]
        leader = conversation.send([CandidateLoss(each) for each in in_contexts])
        assert leader.candidates == [ask.candidates[in_contexts.index(0.0)]]
        assert (leader.reference, leader.state) == (leader.candidates[0], ask.state)
        if loss < best_loss:
            best, best_loss = leader.candidates[0], loss
        if generation < 5:
            ask = conversation.send([CandidateLoss(loss)])


def test_a_bad_start_is_not_the_middle() -> None:
    space = space_of(METHOD, parametrization="free")
    bad = {STARTS[0].factors[3]: math.inf}
    asked = generations(
        Cma(population=6, sigma=1e-6, generations=1), space, loss=lambda one: bad.get(round(one.factors[3], 9), 1.0)
    )
    for sample in asked[1]:
        np.testing.assert_allclose(sample.factors, STARTS[1].factors, rtol=1e-3)


@pytest.mark.parametrize("form", PARAMETRIZATIONS)
@pytest.mark.parametrize("dim", [4, 16, 64])
def test_all_candidates_are_in_the_space(form: str, dim: int) -> None:
    rope = Rope(dim=dim, base=10000.0, original_length=128)
    starts = [scheme(name, rope, 1024) for name in ("pi", "yarn", "heuristic")]
    space = space_of(METHOD, rope, 1024, parametrization=form, search_attention=True, start_tokens=(0, 4, 9))
    for generation in generations(METHOD, space, starts=starts, loss=lambda one: -sum(one.factors)):
        for one in generation:
            assert 1 <= min(one.factors) <= max(one.factors) <= space.largest * (1 + 1e-12)
            assert 1 <= one.attention_factor <= space.largest_attention * (1 + 1e-12)
            assert one.start_tokens in space.start_tokens


@pytest.mark.parametrize(("population", "generations_"), [(5, 3), (9, 2), (None, 4)])
def test_the_number_of_candidates(population: int | None, generations_: int) -> None:
    asked = generations(Cma(population=population, generations=generations_), space_of(METHOD))
    size = population or 4 + int(3 * math.log(6))  # a spline has six coordinates
    assert [len(generation) for generation in asked] == [3] + [size, 1] * generations_
    for generation, leader in zip(asked[1::2], asked[2::2], strict=True):
        assert leader == [min(generation, key=quadratic)]


def test_another_population() -> None:
    assert Cma().with_population(20) == Cma(population=20)
    assert Cma().with_population(20).passes(3) == 3 * 20 * 40
    assert Cma().with_population(20).passes(3, 0.25) == 3 * (1 + 20 / 4) * 40
    assert METHOD.within(10, 1) == METHOD
    with pytest.raises(LongRopeError, match="population = 3: too small"):
        Cma().with_population(3)


def test_at_the_original_length_the_attention_factor_stays() -> None:
    """Its range is 1 to 1 there, and the factors go up to twice the scale."""
    space = space_of(METHOD, length=ROPE.original_length, search_attention=True)
    asked = generations(METHOD, space)
    assert {one.attention_factor for generation in asked for one in generation} == {1.0}
    assert len({one.factors for generation in asked for one in generation}) > 10


def test_the_state_is_that_of_a_fresh_run(tmp_path: Path) -> None:
    """What the journal holds equals what the method says when it is told the losses again."""
    search_with(tmp_path / "j", METHOD, seed=7)
    written = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    states = [line["state"] for line in written if "generation" in line]
    assert states == [json.loads(json.dumps(ask.state)) for ask in asks(METHOD, space_of(METHOD), seed=7)]
    assert states[1::2] == states[2::2]
    assert len({json.dumps(state) for state in states[::2]}) == len(states[::2]) == 7


def test_only_public_members_of_cmaes_are_read() -> None:
    source = inspect.getsource(cma_module)
    assert not re.findall(r"cma\._|vars\(cma|getattr\(cma", source)


def test_bad_losses_count_as_worse_than_every_good_one() -> None:
    """Samples with a bad loss steer the search as those with a very large one do."""

    def walled(wall: float) -> list[list[Scaling]]:
        space = space_of(METHOD)
        return generations(METHOD, space, loss=lambda one: wall if one.factors[4] > 4.2 else quadratic(one))

    assert walled(math.inf) == walled(1e6)
    assert walled(math.inf) != walled(0.0)


def test_what_the_seed_is() -> None:
    one, again, other = (generations(METHOD, space_of(METHOD), seed=seed) for seed in (3, 3, 4))
    assert one == again
    assert one[0] == other[0]
    assert one[1] != other[1]
