from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import (
    LENGTH,
    ROPE,
    STARTS,
    TARGET,
    Documents,
    asks,
    attentive,
    attentive_slope,
    evaluations,
    generations,
    quadratic,
    search_with,
    slope,
    space_of,
)

from longrope.errors import LongRopeError
from longrope.scaling import Scaling
from longrope.search.gradient import Gradient
from longrope.search.parametrizations import PARAMETRIZATIONS
from longrope.search.protocol import CandidateBatch, CandidateLoss, FunctionObjective

METHOD = Gradient(steps=10)
LONG = Gradient(steps=23)  # compared after 5, 10, 15, 20 and 23 steps
FIRST = 0.2 * math.log(LENGTH / ROPE.original_length) / math.sqrt(10)  # step of `METHOD`
RATE = 0.2 * math.log(LENGTH / ROPE.original_length)  # of every `Gradient` before it goes back
DAMPED = np.minimum(1, 1 / (8 * ROPE.inv_freq))
MIDDLE = [Scaling([3.0] * 8)]  # a start that is away from all bounds
SCATTERED = [-1.5, 0.5, 1.0]  # of the targets of three items


def path(asked: list[CandidateBatch]) -> np.ndarray:
    """The log factors before each step, ``(steps, pairs)``."""
    return np.log([ask.candidates[0].factors for ask in asked if ask.gradient_step is not None])


def compared(asked: list[CandidateBatch]) -> np.ndarray:
    """The log factors that were compared on all items after the starts, ``(comparisons, pairs)``."""
    return np.log([ask.candidates[0].factors for ask in asked[1:] if ask.gradient_step is None])


def steps(asked: list[CandidateBatch]) -> np.ndarray:
    """Changes of the log factors from step to step, ``(steps, pairs)``."""
    return np.diff(path(asked), axis=0)


def middle(method: Gradient = METHOD, **fields: object) -> list[CandidateBatch]:
    return asks(method, space_of(method), starts=MIDDLE, **fields)


def test_it_comes_close_to_the_target(tmp_path: Path) -> None:
    best = search_with(tmp_path / "j", Gradient(steps=120)).best
    np.testing.assert_allclose(np.log(best.factors), np.log(TARGET), atol=0.1)


@pytest.mark.parametrize("form", PARAMETRIZATIONS)
def test_it_improves_on_its_start_in_every_form(tmp_path: Path, form: str) -> None:
    outcome = search_with(tmp_path / "j", Gradient(steps=40), parametrization=form)
    start = min(record.loss for record in outcome.improvements[:1])
    first = {one: loss for loss, one in outcome.ranked}
    assert outcome.ranked[0][0] < 0.95 * start
    assert len(first) == len(outcome.ranked)


@given(st.integers(0, 2000), st.integers(1, 30))
def test_within_a_budget_it_costs_no_more(passes: int, items: int) -> None:
    """Nor so little that one more step would fit in; one step is the least."""
    found = Gradient().within(passes, items)
    assert found.steps >= 1
    assert found.passes(items) <= passes or found.steps == 1
    assert Gradient(steps=found.steps + 1).passes(items) > passes


@given(st.integers(0, 2000), st.integers(1, 30), st.sampled_from([0.03125, 0.125, 0.25, 0.5]))
def test_within_a_budget_it_costs_no_more_in_contexts(passes: int, items: int, context_cost: float) -> None:
    found = Gradient().within(passes, items, context_cost)
    assert found.steps >= 1
    assert found.passes(items, context_cost) <= passes or found.steps == 1
    assert Gradient(steps=found.steps + 1).passes(items, context_cost) > passes


@pytest.mark.parametrize("passes", range(170, 190))
def test_a_budget_is_kept_to_the_last_pass_in_contexts(passes: int) -> None:
    """350 steps of three tenths are 105 passes, though their product in floating point is a little above."""
    assert Gradient().within(passes, 1, 0.1).passes(1, 0.1) <= passes


@pytest.mark.parametrize(("items", "of_a_step"), [(1, 1), (3, 1), (4, 1), (7, 1), (8, 2), (21, 5)])
def test_a_step_in_contexts_is_of_a_quarter_of_the_items(items: int, of_a_step: int) -> None:
    assert Gradient(steps=20).passes(items, 0.25) == 2 * items + 20 * 3 * of_a_step / 4 + 4 * items
    assert Gradient(steps=20).gradient_steps(items, 0.25) == 20 * of_a_step / 4
    assert Gradient(steps=20).gradient_steps(items) == 20


@pytest.mark.parametrize("passes", [20, 47, 90, 140])
@pytest.mark.parametrize("items", [1, 3, 5])
def test_what_it_says_it_costs_is_what_it_costs(tmp_path: Path, passes: int, items: int) -> None:
    method, documents = Gradient().within(passes, items), Documents((7,) * items, apart=0.1)
    outcome = search_with(tmp_path / "j", method, objective=documents, starts=STARTS[1:])
    assert outcome.stopped == "the method is done"
    repeated = method.steps - sum("gradient" in line for line in evaluations(tmp_path / "j"))
    assert outcome.tokens + 3 * repeated * 7 == method.passes(items) * 7 <= passes * 7
    assert repeated <= 1


def test_other_numbers_of_steps() -> None:
    assert Gradient().with_population(50) == Gradient(steps=50)
    assert Gradient(rate=0.3).within(2 * 4 + 4 * (15 + 4), 4) == Gradient(steps=20, rate=0.3)
    assert Gradient().within(2 * 4 + 4 * (15 + 4) + 2 * 3 + 4, 4) == Gradient(steps=22)
    with pytest.raises(LongRopeError, match="population = 2: too small"):
        Gradient().with_population(2)


def test_the_starts_are_compared_and_the_best_is_gone_on_from() -> None:
    asked = asks(LONG, space_of(LONG))
    assert [len(ask.candidates) for ask in asked] == [3] + [1] * 28
    rounds = [range(5), range(5, 10), range(10, 15), range(15, 20), range(20, 23)]
    assert [ask.gradient_step for ask in asked] == [None, *chain.from_iterable([*each, None] for each in rounds)]
    np.testing.assert_allclose(path(asked)[0], np.log(min(STARTS, key=quadratic).factors), rtol=1e-9)


def test_one_start_is_compared_too() -> None:
    """Else a budget too small for one comparison would be noticed only after five steps."""
    assert [ask.gradient_step for ask in middle()] == [None, *range(5), None, *range(5, 10), None]


@pytest.mark.parametrize("bad", range(3))
def test_a_start_without_a_finite_loss_is_not_gone_on_from(bad: int) -> None:
    space = space_of(METHOD)
    closest = [space.candidate(space.coordinates(start)) for start in STARTS]
    losses = {closest[bad]: math.inf, closest[(bad + 1) % 3]: 2.0, closest[(bad + 2) % 3]: 1.0}
    asked = generations(METHOD, space, loss=lambda one: losses.get(one, 0.5))
    assert asked[1] == [closest[(bad + 2) % 3]]


def test_the_first_step_is_against_the_sign_of_the_slope_and_damped_in_fast_pairs() -> None:
    """Adam's first step has the same size wherever the slope is not 0, times min(1, 1 / (8·inv_freq))."""
    first = steps(middle())[0]
    assert (np.sign(first) == np.sign(np.log(TARGET) - np.log(3.0))).all()
    np.testing.assert_allclose(
        abs(first) / abs(first[-1]), np.minimum(1, 1 / (METHOD.reach * ROPE.inv_freq)), rtol=1e-6
    )


def test_no_step_turns_a_fast_pair_further_than_it_changes_the_slow_ones() -> None:
    moved = np.abs(steps(middle()))
    turned = moved * np.minimum(1, ROPE.inv_freq * METHOD.reach)
    assert (turned[0] <= moved[0, -1] * (1 + 1e-9)).all()
    assert (turned <= 3 * moved[0, -1]).all()


def test_the_steps_fall_to_nothing() -> None:
    """With a slope that never changes, by the cosine."""
    sizes = steps(middle(slope=lambda *_: [*[-1.0] * 8, 0.0]))[:, -1]
    cosine = (1 + np.cos(np.pi * np.arange(9) / 10)) / 2
    np.testing.assert_allclose(sizes, FIRST * cosine, rtol=1e-6)


@dataclass
class ByHand:
    """Adam from `MIDDLE` in a trust region, written out; the target of each item is shifted.

    It holds the log factors before each step, those that are compared, how many of them are not better than the best
    so far, and the rate, the steps since Adam began and its means before each step.
    """

    shifts: Sequence[float]
    steps: int
    shift: float = 0.0  # of the target of all items together
    path: list[np.ndarray] = field(default_factory=list)
    compared: list[np.ndarray] = field(default_factory=list)
    references: list[np.ndarray] = field(default_factory=list)
    returns: int = 0
    adam: list[tuple[float, int, np.ndarray, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        x, rate, count, m, v = np.full(8, math.log(3.0)), RATE, 0, np.zeros(8), np.zeros(8)
        best, recent = (self.loss(x), x), []
        for step in range(self.steps):
            self.path.append(x)
            self.references.append(best[1])
            self.adam.append((rate, count, m, v))
            g = 2 / 8 * (x - np.log(TARGET) - self.shifts[step % len(self.shifts)]) * DAMPED**2
            count, m, v = count + 1, 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
            size = rate / math.sqrt(self.steps) * (1 + math.cos(math.pi * step / self.steps)) / 2
            x = x - size * DAMPED * (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.99**count)) + 1e-12)
            x = np.clip(x, 0, math.log(16))
            recent.append(x)
            if (step + 1) % 5 == 0 or step + 1 == self.steps:
                mean, recent = np.mean(recent, axis=0), []
                self.compared.append(mean)
                if self.loss(mean) < best[0]:
                    best = (self.loss(mean), mean)
                else:
                    self.returns += 1
                    x, rate = best[1], rate / 2

    def loss(self, x: np.ndarray) -> float:
        return quadratic(Scaling(np.exp(x).tolist()), self.shift)


CASES = pytest.mark.parametrize(
    ("shifts", "shift", "returns"), [([0.0], 0.0, 0), (SCATTERED, 0.0, 0), (SCATTERED, -1.5, 4), ([0.0], -1.5, 3)]
)


def shifted(shifts: Sequence[float], shift: float) -> list[CandidateBatch]:
    """What is asked from `MIDDLE` where the target of all items together, and that of each item, is shifted."""
    return middle(
        LONG, loss=lambda one: quadratic(one, shift), slope=lambda one, turn: slope(one, shifts[turn % len(shifts)])
    )


@CASES
def test_steps_are_adams_on_one_item_each_and_a_mean_that_is_not_better_sends_them_back(
    shifts: list[float], shift: float, returns: int
) -> None:
    """To the best one, with half the rate."""
    asked = shifted(shifts, shift)
    expected = ByHand(shifts, 23, shift)
    assert expected.returns == returns
    np.testing.assert_allclose(path(asked), expected.path, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(compared(asked), expected.compared, rtol=1e-6, atol=1e-9)


@CASES
def test_steps_refer_to_the_best_so_far_and_a_comparison_to_itself(
    shifts: list[float], shift: float, returns: int
) -> None:
    asked = shifted(shifts, shift)
    turns = [ask for ask in asked if ask.gradient_step is not None]
    references = np.log([ask.reference.factors for ask in turns if ask.reference is not None])
    np.testing.assert_allclose(references, ByHand(shifts, 23, shift).references, rtol=1e-6, atol=1e-9)
    assert asked[0].reference is None
    assert all(ask.reference == ask.candidates[0] for ask in asked[1:] if ask.gradient_step is None)
    candidates = [ask.candidates[0] for ask in asked[1:] if ask.gradient_step is None]
    assert {ask.reference for ask in turns} <= {turns[0].reference, *candidates}


@CASES
def test_the_state_is_all_that_decides_the_next_step(shifts: list[float], shift: float, returns: int) -> None:
    """For the journal: where it stands before a step, its rate, and Adam's means; a comparison repeats the last one."""
    asked = shifted(shifts, shift)
    for ask in asked[1:]:
        json.dumps(ask.state)
        assert list(ask.state) == ["step", "x", "rate", "count", "first", "second"]
    turns = [ask for ask in asked if ask.gradient_step is not None]
    assert [ask.state["step"] for ask in turns] == list(range(23))
    np.testing.assert_allclose([ask.state["x"] for ask in turns], path(asked), atol=1e-12)
    expected = ByHand(shifts, 23, shift)
    for ask, (rate, count, first, second) in zip(turns, expected.adam, strict=True):
        assert (ask.state["rate"], ask.state["count"]) == (rate, count)
        np.testing.assert_allclose(ask.state["first"], first, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(ask.state["second"], second, rtol=1e-6, atol=1e-12)
    for before, ask in pairwise(asked[1:]):
        assert ask.gradient_step is not None or ask.state == before.state
    assert [ask.state["step"] for ask in asked[1:] if ask.gradient_step is None] == [4, 9, 14, 19, 22]


def test_a_search_takes_the_items_in_turn(tmp_path: Path) -> None:
    """The same by way of the evaluator and the journal."""
    documents = Documents((5, 5, 9), apart=0.7)
    search_with(tmp_path / "j", LONG, objective=documents, starts=MIDDLE)
    lines = [line for line in evaluations(tmp_path / "j") if "gradient" in line]
    assert [line["item"] for line in lines] == [2 * step % 3 for step in range(23)]
    found = np.log([line["factors"] for line in lines])
    np.testing.assert_allclose(found, ByHand([-0.7, 0.7, 0.0], 23).path, rtol=1e-6, atol=1e-9)


def test_items_that_pull_apart_lead_to_the_best_for_all_of_them(tmp_path: Path) -> None:
    best = search_with(tmp_path / "j", Gradient(steps=150), objective=Documents((5,) * 5, apart=0.4)).best
    np.testing.assert_allclose(np.log(best.factors)[3:], np.log(TARGET)[3:], atol=0.1)


@pytest.mark.parametrize("frozen", [0.5, 5.0])
def test_frozen_pairs_keep_their_factors(frozen: float) -> None:
    still = ROPE.original_length / ROPE.wavelengths > frozen
    moved = np.abs(steps(middle(Gradient(steps=6, frozen=frozen)))).max(axis=0)
    assert (moved[still] == 0).all()
    assert (moved[~still] > 0).all()
    assert still.sum() == sum(256 / (2 * math.pi * 10 ** (i / 2)) > frozen for i in range(8))


BAD = pytest.mark.parametrize(("bad_loss", "bad_slope"), [(math.inf, math.inf), (math.inf, 0.0), (9.0, math.nan)])


def after_bad(turn: int, bad_loss: float, bad_slope: float, **fields: object) -> list[CandidateBatch]:
    """All asks where the answer to one turn is bad."""
    space, asked = space_of(LONG), []
    conversation = LONG.propose(space, MIDDLE, np.random.default_rng(0))
    ask = next(conversation)
    while True:
        asked.append(ask)
        (one,) = ask.candidates
        answer = CandidateLoss(quadratic(one, **fields), None if ask.gradient_step is None else tuple(slope(one)))
        try:
            ask = conversation.send(
                [CandidateLoss(bad_loss, (bad_slope,) * 9) if ask.gradient_step == turn else answer]
            )
        except StopIteration:
            return asked


@BAD
@pytest.mark.parametrize("turn", [0, 2, 4])
def test_what_is_not_finite_before_a_comparison_sends_it_back_to_the_start(
    turn: int, bad_loss: float, bad_slope: float
) -> None:
    asked = after_bad(turn, bad_loss, bad_slope)
    before = path(asked)[1 : turn + 1]  # the finite steps, and those after it
    mean = np.mean([*before, *path(asked)[turn + 2 : 6]], axis=0) if turn < 4 else before.mean(axis=0)
    np.testing.assert_allclose(compared(asked)[0], mean, rtol=1e-9)
    np.testing.assert_allclose(path(asked)[turn + 1], np.log(3.0), rtol=1e-12)


@BAD
@pytest.mark.parametrize(("shift", "best", "halvings"), [(0.0, 2, 1), (-0.5, 1, 2)])
def test_what_is_not_finite_sends_it_back_to_the_best_that_was_compared(
    shift: float, best: int, halvings: int, bad_loss: float, bad_slope: float
) -> None:
    """With half the rate, and Adam anew: the next step is again against the sign of the slope."""
    asked = after_bad(17, bad_loss, bad_slope, shift=shift)
    found = path(asked)
    losses = [quadratic(Scaling(np.exp(one).tolist()), shift) for one in compared(asked)[:3]]
    assert np.argmin(losses) == best
    np.testing.assert_allclose(found[18], compared(asked)[best], rtol=1e-9)
    turns = [ask for ask in asked if ask.gradient_step is not None]
    assert (turns[18].state["rate"], turns[18].state["count"]) == (RATE / 2**halvings, 0)
    size = RATE / 2**halvings / math.sqrt(23) * (1 + math.cos(math.pi * 18 / 23)) / 2
    assert abs(found[19, -1] - found[18, -1]) == pytest.approx(size, rel=1e-6)
    assert np.sign(found[19, -1] - found[18, -1]) == np.sign(math.log(TARGET[-1]) - found[18, -1])


def test_where_no_slope_is_finite_the_start_is_compared_again_and_again() -> None:
    asked = middle(LONG, slope=lambda *_: [math.nan] * 9)
    np.testing.assert_allclose(np.concatenate([path(asked), compared(asked)]), np.log(3.0), rtol=1e-12)


@pytest.mark.parametrize("offered", [(0, 4), (0, 4, 8, 16)])
@pytest.mark.parametrize(("shift", "best"), [(-1.0, 2), (-1.5, 4), (-3.0, None)])
def test_every_number_of_start_tokens_of_the_best_is_asked_for_in_the_end(
    offered: tuple[int, ...], shift: float, best: int | None
) -> None:
    """Of the best that was compared, or of the start if none is better."""
    asked = asks(LONG, space_of(LONG, start_tokens=offered), loss=lambda one: quadratic(one, shift), starts=MIDDLE)
    assert [one.start_tokens for one in asked[-1].candidates] == list(offered)
    means = [ask.candidates[0] for ask in asked[1:-1] if ask.gradient_step is None]
    ranked = sorted([asked[1].candidates[0], *means], key=lambda one: quadratic(one, shift))
    assert ranked[0] == (asked[1].candidates[0] if best is None else means[best])
    assert {one.factors for one in asked[-1].candidates} == {ranked[0].factors}
    assert (asked[-1].gradient_step, asked[-1].reference) == (None, None)


def test_the_attention_factor_is_searched_with_the_factors(tmp_path: Path) -> None:
    objective = FunctionObjective(attentive, attentive_slope)
    best = search_with(tmp_path / "j", Gradient(steps=60), objective=objective, search_attention=True).best
    assert best.attention_factor == pytest.approx(1.15, abs=0.03)
    fixed = search_with(tmp_path / "k", Gradient(steps=60), objective=objective).best
    assert fixed.attention_factor == 1.0


def test_the_attention_factor_takes_a_quarter_of_the_slow_pairs_step() -> None:
    space = space_of(METHOD, search_attention=True)
    asked = asks(METHOD, space, starts=MIDDLE, slope=lambda *_: [-1.0] * 9)
    first = np.diff([math.log(ask.candidates[0].attention_factor) for ask in asked[1:3]])
    assert first == pytest.approx(steps(asked)[0, -1] / 4, rel=1e-9)
    assert first == pytest.approx(FIRST / 4, rel=1e-9)


def test_candidates_stay_in_the_space() -> None:
    """However steep it is."""
    space = space_of(METHOD, search_attention=True)
    for sign in (-1, 1):
        found = generations(
            Gradient(steps=30, rate=5.0),
            space,
            loss=lambda one, sign=sign: sign * sum(one.factors),
            slope=lambda *_, sign=sign: [sign * 1e6] * 9,
        )
        for (one,) in found[1:]:
            assert 1 <= min(one.factors) <= max(one.factors) <= space.largest * (1 + 1e-12)
            assert 1 <= one.attention_factor <= space.largest_attention * (1 + 1e-12)
        edge = space.largest if sign < 0 else 1
        assert found[-1][0].factors[-1] == pytest.approx(edge)
    assert space.length == LENGTH


def test_pairs_on_their_bound_move_as_far_as_others() -> None:
    """A start with factors of 1, as YaRN's, takes the same first steps as one with factors above."""
    upwards = {"slope": lambda *_: [*[-1.0] * 8, 0.0]}
    on, off = (asks(METHOD, space_of(METHOD), starts=[Scaling([start] * 8)], **upwards) for start in (1.0, 1.5))
    np.testing.assert_allclose(steps(on)[0], steps(off)[0], rtol=1e-6)
