from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import LENGTH, ROPE, SMALL, STARTS, Documents, evaluations, quadratic, scattered, search_with, timeless

from longrope.errors import LongRopeError
from longrope.scaling import Scaling
from longrope.schemes import scheme
from longrope.search.auto import Auto
from longrope.search.budget import Budget, Stop
from longrope.search.evaluator import Evaluator, samples_per_step, stride
from longrope.search.gradient import Gradient
from longrope.search.journal import Journal, context_name
from longrope.search.method import Method
from longrope.search.protocol import Batch, CandidateBatch, CandidateLoss, context_tokens

A, B, C, D = (Scaling([1.0 + i] * 8) for i in range(4))
Opened = tuple[Journal, Path]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    journal = Journal(tmp_path / "j", {})
    yield journal, tmp_path / "j"
    journal.close()


def evaluator(objective: Documents, journal: Journal, tokens: int | None = None, **fields: object) -> Evaluator:
    return Evaluator(objective, journal, budget=Budget(tokens), **fields)


def seeing(seen: list[Batch]) -> Documents:
    """Documents that write down the batches."""

    class Seeing(Documents):
        def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
            seen.extend(batches)
            return super().evaluate(batches, gradient=gradient)

    return Seeing()


def test_an_answer_is_the_mean_over_the_items(opened: Opened) -> None:
    documents = Documents(noise=lambda one, item: item**2 / one.factors[0])
    found = evaluator(documents, opened[0]).evaluate(CandidateBatch([C, A]))
    for one, answer in zip((C, A), found, strict=True):
        assert answer.loss == pytest.approx(np.mean([documents.loss(one, item) for item in range(5)]))
        assert answer.gradient is None


@pytest.mark.parametrize("turn", [0, 3, 5, 12])
def test_a_turn_is_the_loss_and_slope_of_one_item_at_three_times_its_tokens(opened: Opened, turn: int) -> None:
    calls: list[tuple[Scaling, int]] = []
    documents = Documents(apart=0.3, calls=calls)
    one, item = evaluator(documents, opened[0]), 3 * turn % 5
    found = one.evaluate(CandidateBatch([C, A], gradient_step=turn))
    assert found == [CandidateLoss(documents.loss(each, item), documents.slope(each, item)) for each in (C, A)]
    for _ in range(2):  # the second time it is known, and costs nothing
        assert calls == [(C, item), (A, item)]
        assert one.tokens == 3 * 2 * (5, 5, 5, 9, 9)[item]
        assert one.evaluate(CandidateBatch([A, C], gradient_step=turn + 10)) == found[::-1]
    assert not one.mean_losses


@given(st.integers(1, 200))
def test_turns_take_every_item_once_and_neighbours_are_of_different_parts(count: int) -> None:
    """Of items that lie together part by part, of two parts or more, any few turns in a row see several."""
    order = [turn * stride(count) % count for turn in range(count)]
    assert sorted(order) == list(range(count))
    if count >= 4:
        halves = [item < count / 2 for item in order]
        assert all(len(set(halves[i : i + 4])) == 2 for i in range(count - 3))


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_batches_are_full_and_of_one_length(opened: Opened, rows: int) -> None:
    """Every pair once, in order; a batch ends only where it is full or the length changes."""
    batches: list[Batch] = []
    documents = seeing(batches)
    evaluator(documents, opened[0], batch_size=rows).evaluate(CandidateBatch([A, B, C]))
    assert [pair for batch in batches for pair in batch] == [(one, item) for one in (A, B, C) for item in range(5)]
    assert max(map(len, batches)) == min(rows, 3)
    lengths = [[documents.tokens[item] for _, item in batch] for batch in batches]
    assert all(len(set(one)) == 1 for one in lengths)
    assert all(len(one) == rows or one[0] != other[0] for one, other in pairwise(lengths))


def test_gradients_are_taken_one_pair_at_a_time(opened: Opened) -> None:
    """Their memory is what limits the length."""
    batches: list[Batch] = []
    one = evaluator(seeing(batches), opened[0], batch_size=4)
    one.evaluate(CandidateBatch([A, B, C], gradient_step=1))
    assert [len(batch) for batch in batches] == [1] * 3


def test_what_is_known_costs_nothing(opened: Opened) -> None:
    calls: list[tuple[Scaling, int]] = []
    one = evaluator(Documents(calls=calls), opened[0])
    first = one.evaluate(CandidateBatch([A, B, A, A]))
    assert first[0] == first[2] == first[3]
    assert (len(calls), one.tokens) == (10, 2 * 33)
    assert one.evaluate(CandidateBatch([B, A])) == [first[1], first[0]]
    assert (len(calls), one.tokens) == (10, 2 * 33)


def test_items_with_a_slope_need_not_be_evaluated_again(opened: Opened) -> None:
    """After all of them the mean costs nothing more, and is as good as any other."""
    calls: list[tuple[Scaling, int]] = []
    documents = Documents(calls=calls)
    one = evaluator(documents, opened[0])
    for turn in (1, 2, 3, 0):  # items 3, 1, 4, 0
        one.evaluate(CandidateBatch([A, B], gradient_step=turn))
    assert not one.mean_losses
    one.evaluate(CandidateBatch([A], gradient_step=4))
    mean = float(np.mean([documents.loss(A, item) for item in range(5)]))
    assert one.mean_losses == {A: pytest.approx(mean)}
    assert (one.improvements[-1].scaling, one.improvements[-1].tokens) == (A, one.tokens)
    assert (len(calls), one.tokens) == (9, 3 * (33 + 28))
    assert one.evaluate(CandidateBatch([A])) == [CandidateLoss(one.mean_losses[A])]
    assert (len(calls), one.tokens) == (9, 3 * (33 + 28))
    one.evaluate(CandidateBatch([B, A]))
    assert calls[9:] == [(B, 2)]
    assert one.tokens == 3 * (33 + 28) + 5


def test_a_slope_of_what_is_known_without_costs_three_forward_passes(opened: Opened) -> None:
    one = evaluator(Documents(), opened[0])
    (mean,) = one.evaluate(CandidateBatch([B]))
    one.evaluate(CandidateBatch([B], gradient_step=3))
    assert one.tokens == 33 + 3 * 9
    assert one.evaluate(CandidateBatch([B])) == [mean]
    assert one.tokens == 33 + 3 * 9


@pytest.mark.parametrize("rows", [1, 2])
def test_a_partly_known_batch_is_evaluated_as_a_whole(tmp_path: Path, rows: int) -> None:
    """What an answer is may depend on its batch, so a batch is computed with the same pairs as it was."""
    documents, path = Documents((5, 5, 5)), tmp_path / "j"
    journal = Journal(path, {})
    evaluator(documents, journal, batch_size=rows).evaluate(CandidateBatch([A, B]))
    journal.close()
    whole, lines = timeless(path), path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]))  # the settings and three pairs
    calls: list[tuple[Scaling, int]] = []
    journal = Journal(path, {}, resume=True)
    one = evaluator(replace(documents, calls=calls), journal, batch_size=rows)
    one.evaluate(CandidateBatch([A, B]))
    journal.close()
    again = {1: [(B, 0), (B, 1), (B, 2)], 2: [(A, 2), (B, 0), (B, 1), (B, 2)]}[rows]
    assert calls == again
    assert one.tokens == 30
    assert set(timeless(path)) == set(whole)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("racing", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_the_order_of_the_answers_does_not_matter(tmp_path: Path, name: str, rows: int, racing: bool) -> None:
    one, other = (
        search_with(
            tmp_path / str(backwards),
            SMALL[name],
            objective=Documents(noise=scattered, apart=0.2, backwards=backwards),
            batch_size=rows,
            racing=racing,
        )
        for backwards in (False, True)
    )
    assert (one.ranked, one.improvements, one.tokens) == (other.ranked, other.improvements, other.tokens)
    assert set(timeless(tmp_path / "False")) == set(timeless(tmp_path / "True"))


def test_records_are_in_the_order_of_the_ask(opened: Opened) -> None:
    one = evaluator(Documents(backwards=True), opened[0])
    losses = [quadratic(scaling) for scaling in (D, A, B, C)]
    one.evaluate(CandidateBatch([D, A, B, C]))
    best = [(D, A, B, C)[i] for i in range(4) if losses[i] == min(losses[: i + 1])]
    assert [record.scaling for record in one.improvements] == best
    assert {record.tokens for record in one.improvements} == {4 * 33}


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("tokens", [33, 65, 66, 70, 98])
def test_the_budget_is_a_prefix_of_the_batches(opened: Opened, tokens: int, rows: int) -> None:
    """Candidates that it paid for count, and it ends where the next batch would pass it."""
    calls: list[tuple[Scaling, int]] = []
    one = evaluator(Documents(calls=calls), opened[0], tokens, batch_size=rows)
    with pytest.raises(Stop, match=f"the budget of {tokens} token-evaluations is spent"):
        one.evaluate(CandidateBatch([A, B, C]))
    assert calls == [(scaling, item) for scaling in (A, B, C) for item in range(5)][: len(calls)]
    assert one.tokens == sum((5, 5, 5, 9, 9)[item] for _, item in calls) <= tokens
    assert tokens - one.tokens < 9 * rows
    assert len(one.mean_losses) == len(calls) // 5


@pytest.mark.parametrize("tokens", [1, 32])
def test_a_budget_below_one_candidate_is_an_error_that_names_both(opened: Opened, tokens: int) -> None:
    one = evaluator(Documents(), opened[0], tokens)
    with pytest.raises(LongRopeError, match=rf"budget = {tokens}: one step of this search takes 33 token-evaluations"):
        one.evaluate(CandidateBatch([A, B]))
    assert evaluations(opened[1]) == []


@pytest.mark.parametrize("tokens", [48, 60, 74])
def test_a_turn_that_the_budget_does_not_pay_for_is_not_taken(opened: Opened, tokens: int) -> None:
    calls: list[tuple[Scaling, int]] = []
    one = evaluator(Documents(calls=calls), opened[0], tokens)
    one.evaluate(CandidateBatch([A]))
    one.evaluate(CandidateBatch([B], gradient_step=0))
    with pytest.raises(Stop, match=f"the budget of {tokens} token-evaluations is spent"):
        one.evaluate(CandidateBatch([B], gradient_step=3))
    assert one.tokens == 33 + 15
    assert calls[5:] == [(B, 0)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the evaluator takes for the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def taking(clock: list[float], seconds: float) -> Documents:
    """Documents of which every batch takes so long."""

    class Taking(Documents):
        def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
            for index, answers in super().evaluate(batches, gradient=gradient):
                clock[0] += seconds
                yield index, answers

    return Taking()


@pytest.mark.parametrize(("rows", "batches"), [(1, 10), (2, 6), (3, 4)])
def test_the_seconds_of_a_batch_are_shared_by_its_pairs(
    opened: Opened, clock: list[float], rows: int, batches: int
) -> None:
    """And what is done between two batches is not counted."""

    def told() -> None:
        clock[0] += 50.0

    one = evaluator(taking(clock, 0.6), opened[0], batch_size=rows, on_batch=told)
    one.evaluate(CandidateBatch([A, B]))
    assert one.seconds == pytest.approx(0.6 * batches)
    found = [line["seconds"] for line in evaluations(opened[1])]
    of_one = {1: [0.6] * 5, 2: [0.3, 0.3, 0.6, 0.3, 0.3], 3: [0.2, 0.2, 0.2, 0.3, 0.3]}[rows]
    assert found == pytest.approx(of_one * 2)
    again = evaluator(taking(clock, 99.0), opened[0], batch_size=rows)
    again.evaluate(CandidateBatch([A, B]))
    assert again.seconds == pytest.approx(one.seconds)


def test_seconds_are_written_to_a_millionth(opened: Opened, clock: list[float]) -> None:
    evaluator(taking(clock, 0.12345678), opened[0]).evaluate(CandidateBatch([A]))
    assert {line["seconds"] for line in evaluations(opened[1])} == {0.123457}


@pytest.mark.parametrize(("seconds", "count", "said"), [(3.5, 7, "3.5"), (4.0, 8, "4"), (0.1, 5, "0.1")])
def test_the_time_budget_ends_after_the_batch_that_spends_it(
    opened: Opened, clock: list[float], seconds: float, count: int, said: str
) -> None:
    """But not before the first candidate has all its samples: a search must have a best one."""
    one = Evaluator(taking(clock, 0.5), opened[0], budget=Budget(seconds=seconds))
    with pytest.raises(Stop, match=f"^the time budget of {said} s is spent$"):
        one.evaluate(CandidateBatch([A, B]))
    assert one.seconds == 0.5 * count
    assert len(evaluations(opened[1])) == count


@pytest.mark.parametrize("asked", [[A, B], [B, A]])
@pytest.mark.parametrize(("rows", "times"), [(1, 10), (3, 4)])
def test_every_batch_is_told_once_what_leads(opened: Opened, rows: int, times: int, asked: list[Scaling]) -> None:
    leading: list[tuple[float, Scaling] | None] = []
    one = evaluator(Documents(), opened[0], batch_size=rows, on_batch=lambda: leading.append(one.best))
    one.evaluate(CandidateBatch(asked))
    assert len(leading) == times
    first = leading.index((one.mean_losses[asked[0]], asked[0]))
    assert leading[:first] == [None] * first
    assert first == {1: 4, 3: 1}[rows]
    assert leading[-1] == min((loss, one_) for one_, loss in one.mean_losses.items())


def test_a_budget_of_thousands_is_easy_to_read(opened: Opened) -> None:
    one = evaluator(Documents((1000, 1000)), opened[0], 3999)
    with pytest.raises(Stop, match=r"^the budget of 3,999 token-evaluations is spent$"):
        one.evaluate(CandidateBatch([A, B]))
    assert one.tokens == 3000


def racing_journal(path: Path, documents: Documents, asks: list[CandidateBatch], **fields: object) -> Evaluator:
    journal = Journal(path, {})
    one = evaluator(documents, journal, racing=True, **fields)
    for ask in asks:
        one.evaluate(ask)
    journal.close()
    return one


BEST, WORSE = STARTS[2], Scaling([8.0, *STARTS[2].factors[1:]])


def test_who_is_clearly_worse_is_not_evaluated_any_further(tmp_path: Path) -> None:
    """The first best cannot be raced; a worse one is dropped after two of the items, which lie apart."""
    calls: list[tuple[Scaling, int]] = []
    one = racing_journal(tmp_path / "j", Documents(calls=calls), [CandidateBatch([BEST]), CandidateBatch([WORSE])])
    assert calls == [(BEST, item) for item in range(5)] + [(WORSE, 0), (WORSE, 3)]
    assert one.tokens == 33 + sum(one.objective.tokens[item] for item in (0, 3))
    assert list(one.mean_losses) == [BEST]


def test_nobody_is_raced_unasked(opened: Opened) -> None:
    one = evaluator(Documents(), opened[0])
    one.evaluate(CandidateBatch([BEST]))
    one.evaluate(CandidateBatch([WORSE]))
    assert list(one.mean_losses) == [BEST, WORSE]


def test_who_lost_a_race_is_told_what_it_would_come_to(opened: Opened) -> None:
    one = evaluator(Documents(), opened[0], racing=True)
    (best,) = one.evaluate(CandidateBatch([BEST]))
    (lost,) = one.evaluate(CandidateBatch([WORSE]))
    assert lost.loss == pytest.approx(best.loss + quadratic(WORSE) - quadratic(BEST))


def test_a_gradient_is_never_raced(opened: Opened) -> None:
    one = evaluator(Documents(), opened[0], racing=True)
    one.evaluate(CandidateBatch([BEST]))
    found = [one.evaluate(CandidateBatch([WORSE], gradient_step=turn))[0] for turn in range(5)]
    assert None not in [answer.gradient for answer in found]
    assert WORSE in one.mean_losses


def test_who_lost_and_is_asked_for_again_costs_nothing_more(opened: Opened) -> None:
    calls: list[tuple[Scaling, int]] = []
    one = evaluator(Documents(calls=calls), opened[0], racing=True)
    one.evaluate(CandidateBatch([BEST]))
    first, spent, count = one.evaluate(CandidateBatch([WORSE])), one.tokens, len(calls)
    assert one.evaluate(CandidateBatch([WORSE])) == first
    assert len(calls) == count
    assert one.tokens == spent


@pytest.mark.parametrize("second", [0.5, -5.0])
def test_who_lost_is_not_raced_again_against_a_new_best(opened: Opened, second: float) -> None:
    """Whether on the items that it was evaluated on it is clearly worse than that one too, or is not."""
    documents = Documents(noise=lambda one, item: (-5.0, -8.0, -8.0, second, -8.0)[item] if one == A else 0.0)
    one = evaluator(documents, opened[0], racing=True)
    one.evaluate(CandidateBatch([BEST]))
    first = one.evaluate(CandidateBatch([WORSE]))
    one.evaluate(CandidateBatch([A]))
    assert one.improvements[-1].scaling == A
    spent = one.tokens
    assert one.evaluate(CandidateBatch([WORSE])) == first
    assert one.tokens == spent


def test_who_lost_and_then_leads_by_its_gradient_can_be_raced_against(opened: Opened) -> None:
    """Worse on the first items, better on all: lost in a race, then evaluated with its slopes."""

    def noise(one: Scaling, item: int) -> float:
        return 0.0 if one != A else 1.0 + 0.01 * item if item in (0, 3) else (-20.0, -19.0)[item % 2]

    one = evaluator(Documents(noise=noise), opened[0], racing=True)
    one.evaluate(CandidateBatch([BEST]))
    one.evaluate(CandidateBatch([A]))
    assert A not in one.mean_losses
    for turn in range(5):
        one.evaluate(CandidateBatch([A], gradient_step=turn))
    assert one.improvements[-1].scaling == A
    assert one.evaluate(CandidateBatch([A])) == [CandidateLoss(one.mean_losses[A])]
    one.evaluate(CandidateBatch([B]))
    assert B in {**one.mean_losses, **one.race_estimates}


def test_no_race_is_lost_on_samples_of_one_kind(opened: Opened) -> None:
    """Long samples, on which a candidate is a little worse for certain, come before short ones, which it keeps."""

    def loss(one: Scaling, item: int) -> float:
        extra = (0.0 if one == B else 5.0 + 0.1 * item) if item >= 4 else 3.1 if one == B else 3.0
        return extra + 0.002 * item * (one == B) - quadratic(one)

    one = evaluator(Documents((4,) * 8, loss), opened[0], racing=True)
    one.evaluate(CandidateBatch([A]))
    (answer,) = one.evaluate(CandidateBatch([B]))
    assert one.improvements[-1].scaling == B
    assert answer.loss == one.mean_losses[B]


def trial(path: Path, seed: int, *, racing: bool) -> tuple[Evaluator, dict[Scaling, float]]:
    """Thirty candidates, of which every item adds its own noise to the truth; asked for in four goes."""
    rng = np.random.default_rng(seed)
    candidates = [Scaling([1.0 + i] * 8) for i in range(30)]
    truth = {one: float(loss) for one, loss in zip(candidates, rng.exponential(0.5, 30), strict=True)}
    noise = {one: rng.normal(0, 0.1, 12) for one in candidates}
    tokens = (4,) * 12

    def loss(one: Scaling, item: int) -> float:
        return truth[one] - quadratic(one) + float(noise[one][item])

    journal = Journal(path, {})
    one = evaluator(Documents(tokens, loss), journal, racing=racing)
    for start in range(0, 30, 8):
        one.evaluate(CandidateBatch(candidates[start : start + 8]))
    journal.close()
    return one, truth


def test_races_spend_less_and_hardly_ever_drop_who_is_better(tmp_path: Path) -> None:
    """Of candidates that are better than the best at the time, 11 tests at 1% each drop 11% at the most."""
    better, dropped, same, spent, paid = 0, 0, 0, 0, 0
    for seed in range(25):
        plain, _ = trial(tmp_path / f"p{seed}", seed, racing=False)
        raced, truth = trial(tmp_path / f"r{seed}", seed, racing=True)
        best: Scaling | None = None
        for one in truth:
            if best is not None and truth[one] < truth[best]:
                better += 1
                dropped += one not in raced.mean_losses
            if one in raced.mean_losses and (best is None or raced.mean_losses[one] < raced.mean_losses[best]):
                best = one
        same += plain.improvements[-1].scaling == raced.improvements[-1].scaling
        spent, paid = spent + raced.tokens, paid + plain.tokens
    assert better > 50
    assert dropped <= 0.11 * better
    assert same >= 24
    assert spent < 0.7 * paid


@pytest.mark.parametrize("name", ["cma", "paper", "simple"])
def test_a_raced_search_finds_as_good_a_candidate_for_less(tmp_path: Path, name: str) -> None:
    documents = Documents((3,) * 10)
    plain = search_with(tmp_path / "plain", SMALL[name], objective=documents)
    raced = search_with(tmp_path / "raced", SMALL[name], objective=documents, racing=True)
    assert raced.tokens < 0.8 * plain.tokens
    assert raced.ranked[0] == plain.ranked[0]
    assert len(raced.ranked) < len(plain.ranked)


def test_no_loss_that_is_not_finite_is_a_record(opened: Opened) -> None:
    bad = {A: math.nan, B: math.inf, C: -math.inf}
    one = evaluator(Documents(noise=lambda scaling, _: bad.get(scaling, 0.0)), opened[0])
    one.evaluate(CandidateBatch([A, B, C, D]))
    assert [record.scaling for record in one.improvements] == [D]
    assert one.best is not None
    assert one.best[1] == D


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_method_is_told_the_same_of_a_bad_loss_as_after_a_resume(opened: Opened, bad: float) -> None:
    """The journal cannot tell them apart: they are the worst."""
    documents = Documents(noise=lambda scaling, _: bad if scaling == A else 0.0)
    fresh = evaluator(documents, opened[0]).evaluate(CandidateBatch([A, B]))
    resumed = evaluator(documents, opened[0]).evaluate(CandidateBatch([A, B]))
    assert [answer.loss for answer in fresh] == [answer.loss for answer in resumed]
    assert fresh[0].loss == math.inf
    assert evaluations(opened[1])[0]["loss"] is None


def test_the_journal_holds_every_pair_once(tmp_path: Path) -> None:
    search_with(tmp_path / "j", SMALL["paper"], objective=Documents(), batch_size=2)
    pairs = [json.dumps([line["factors"], line["item"]]) for line in evaluations(tmp_path / "j")]
    assert len(pairs) == len(set(pairs))
    assert len(pairs) % 5 == 0


OFF = 0.5  # what a loss in a context is above that of a full pass, for every unit between the first factors
COSTS = (2, 2, 2, 3, 3, 3, 4, 4)


@dataclass(frozen=True)
class Contexts(Documents):
    """Eight documents with frozen contexts, in which a loss is higher the further a candidate is from the reference.

    Args:
        context_tokens: Cost of each item in a context.
        full: takes every pair of a full pass.
        frozen: takes every reference and pair of a pass in contexts, and whether it had a gradient.
    """

    tokens: tuple[int, ...] = (20, 20, 20, 30, 30, 30, 40, 40)
    apart: float = 0.1
    context_tokens: tuple[int, ...] = COSTS
    full: list[tuple[Scaling, int]] = field(default_factory=list)
    frozen: list[tuple[Scaling, Scaling, int, bool]] = field(default_factory=list)

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        self.full.extend(pair for batch in batches for pair in batch)
        return super().evaluate(batches, gradient=gradient)

    def release_contexts(self) -> None:
        pass

    def evaluate_in_context(
        self, batches: Sequence[Batch], *, gradient: bool, reference: Scaling
    ) -> Iterator[tuple[int, list[CandidateLoss]]]:
        for index, batch in enumerate(batches):
            assert len(batch) == 1
            ((candidate, item),) = batch
            if candidate == reference and not gradient:
                self.full.append((candidate, item))
                yield index, [CandidateLoss(self.loss(candidate, item))]
            else:
                self.frozen.append((reference, candidate, item, gradient))
                yield index, [self.in_context(candidate, item, reference, gradient=gradient)]

    def in_context(self, candidate: Scaling, item: int, reference: Scaling, *, gradient: bool = False) -> CandidateLoss:
        off = OFF * abs(candidate.factors[0] - reference.factors[0])
        return CandidateLoss(self.loss(candidate, item) + off, self.slope(candidate, item) if gradient else None)

    def mean(self, candidate: Scaling) -> float:
        return float(np.mean([self.loss(candidate, item) for item in range(8)]))


def test_contexts_are_part_of_the_protocol() -> None:
    assert context_tokens(Contexts()) == COSTS
    assert context_tokens(Documents()) == ()


@pytest.mark.parametrize("rows", [1, 3])
def test_a_pass_in_contexts_costs_what_the_objective_says(opened: Opened, rows: int) -> None:
    """Each candidate has the mean of its losses in them, one item after another."""
    documents = Contexts()
    one = evaluator(documents, opened[0], batch_size=rows)
    found = one.evaluate(CandidateBatch([C, B], reference=A))
    assert documents.frozen == [(A, each, item, False) for each in (C, B) for item in range(8)]
    assert documents.full == []
    for candidate, answer in zip((C, B), found, strict=True):
        off = OFF * (candidate.factors[0] - 1)
        assert answer.loss == pytest.approx(documents.mean(candidate) + off)
        assert answer.gradient is None
    assert one.tokens == 2 * sum(COSTS)


def test_the_reference_gets_a_full_pass_that_counts_as_any_other(opened: Opened) -> None:
    documents = Contexts()
    one = evaluator(documents, opened[0])
    (answer,) = one.evaluate(CandidateBatch([B], reference=B))
    assert documents.full == [(B, item) for item in range(8)]
    assert documents.frozen == []
    assert one.tokens == sum(documents.tokens)
    assert one.mean_losses == {B: answer.loss} == {B: pytest.approx(documents.mean(B))}
    assert [(record.tokens, record.scaling) for record in one.improvements] == [(230, B)]
    assert one.best == (answer.loss, B)


def test_the_reference_among_others_gets_a_full_pass_in_its_turn(opened: Opened) -> None:
    documents = Contexts()
    one = evaluator(documents, opened[0])
    found = one.evaluate(CandidateBatch([A, B, C], reference=B))
    assert documents.full == [(B, item) for item in range(8)]
    assert documents.frozen == [(B, each, item, False) for each in (A, C) for item in range(8)]
    assert one.tokens == 230 + 2 * sum(COSTS)
    assert found[1].loss == one.mean_losses[B]


def test_losses_in_contexts_are_no_mean_losses_and_no_records(opened: Opened) -> None:
    """However low they are: only a full pass of the same candidate counts."""
    documents = Contexts(noise=lambda one, _: -9.0 * one.factors[0])
    one = evaluator(documents, opened[0])
    one.evaluate(CandidateBatch([A], reference=A))
    (in_context,) = one.evaluate(CandidateBatch([B], reference=A))
    one.evaluate(CandidateBatch([B], gradient_step=0, reference=A))
    assert in_context.loss < one.mean_losses[A]
    assert list(one.mean_losses) == list(one.sample_losses) == [A]
    assert [record.scaling for record in one.improvements] == [A]
    assert one.best == (one.mean_losses[A], A)
    spent = one.tokens
    (full,) = one.evaluate(CandidateBatch([B]))
    assert one.tokens == spent + 230
    assert full.loss == pytest.approx(documents.mean(B))
    assert full.loss != in_context.loss
    assert [record.scaling for record in one.improvements] == [A, B]


@pytest.mark.parametrize("step", [0, 1, 3, 4, 7])
def test_a_gradient_in_contexts_is_the_mean_of_the_next_quarter_of_the_items(opened: Opened, step: int) -> None:
    """At three times the cost of the contexts; that of the reference is taken in them too."""
    documents = Contexts()
    one = evaluator(documents, opened[0])
    order = [0, 5, 2, 7, 4, 1, 6, 3] * 2
    items = order[2 * step % 8 :][:2]
    found = one.evaluate(CandidateBatch([C, A], gradient_step=step, reference=A))
    assert documents.frozen == [(A, each, item, True) for each in (C, A) for item in items]
    assert documents.full == []
    for candidate, answer in zip((C, A), found, strict=True):
        each = [documents.in_context(candidate, item, A, gradient=True) for item in items]
        assert answer.loss == pytest.approx(np.mean([one.loss for one in each]))
        assert answer.gradient == pytest.approx(np.mean([one.gradient for one in each], axis=0))
    assert one.tokens == 3 * 2 * sum(COSTS[item] for item in items)
    assert not one.mean_losses


@pytest.mark.parametrize(("count", "share"), [(1, 1), (3, 1), (4, 1), (7, 1), (8, 2), (11, 2), (20, 5)])
def test_steps_in_contexts_take_all_items_in_turn(opened: Opened, count: int, share: int) -> None:
    documents = Contexts(tokens=(20,) * count, context_tokens=(2,) * count)
    one = evaluator(documents, opened[0])
    for step in range(count):
        one.evaluate(CandidateBatch([Scaling([2.0 + step] * 8)], gradient_step=step, reference=A))
    assert samples_per_step(count) == share
    assert [item for _, _, item, _ in documents.frozen] == [i * stride(count) % count for i in range(count * share)]
    assert one.tokens == 3 * 2 * count * share


def test_what_is_known_in_a_context_costs_nothing_in_it_and_all_in_another(opened: Opened) -> None:
    documents = Contexts()
    one = evaluator(documents, opened[0])
    first = one.evaluate(CandidateBatch([B, C, B], reference=A))
    assert first[0] == first[2]
    assert one.evaluate(CandidateBatch([C, B], reference=A)) == [first[1], first[0]]
    assert (one.tokens, len(documents.frozen)) == (2 * sum(COSTS), 16)
    assert one.evaluate(CandidateBatch([B], reference=D)) != [first[0]]
    assert (one.tokens, len(documents.frozen)) == (3 * sum(COSTS), 24)
    one.evaluate(CandidateBatch([B], gradient_step=0, reference=A))
    assert (one.tokens, len(documents.frozen)) == (3 * sum(COSTS) + 3 * (2 + 3), 26)


def test_a_full_pass_is_no_pass_in_contexts_and_the_other_way_round(opened: Opened) -> None:
    documents = Contexts()
    one = evaluator(documents, opened[0])
    one.evaluate(CandidateBatch([B]))
    one.evaluate(CandidateBatch([B], reference=A))
    assert (one.tokens, len(documents.full), len(documents.frozen)) == (230 + sum(COSTS), 8, 8)
    one.evaluate(CandidateBatch([B], reference=B))
    assert (one.tokens, len(documents.full), len(documents.frozen)) == (230 + sum(COSTS), 8, 8)


def test_an_objective_without_contexts_runs_full_passes(opened: Opened) -> None:
    """Whether it has no such method, or says that this model has none; a loss that is known costs nothing."""
    for number, documents in enumerate((Documents((20,) * 8), Contexts(context_tokens=()))):
        one = evaluator(documents, Journal(opened[1].with_name(str(number)), {}))
        plain = evaluator(documents, Journal(opened[1].with_name(f"plain-{number}"), {}))
        assert one.evaluate(CandidateBatch([B, C], reference=A)) == plain.evaluate(CandidateBatch([B, C]))
        assert list(one.mean_losses) == [B, C]
        spent = one.tokens
        assert one.evaluate(CandidateBatch([C], reference=C)) == plain.evaluate(CandidateBatch([C]))
        assert one.tokens == spent == 2 * sum(documents.tokens)
        gradients = CandidateBatch([A], gradient_step=3, reference=C), CandidateBatch([A], gradient_step=3)
        assert one.evaluate(gradients[0]) == plain.evaluate(gradients[1])
        assert one.tokens == plain.tokens
        one.journal.close()
        plain.journal.close()


def test_the_journal_names_the_context_of_a_loss(opened: Opened) -> None:
    one = evaluator(Contexts(), opened[0])
    one.evaluate(CandidateBatch([A], reference=A))
    one.evaluate(CandidateBatch([B], reference=A))
    one.evaluate(CandidateBatch([B], gradient_step=0, reference=A))
    one.evaluate(CandidateBatch([B], reference=C))
    lines = evaluations(opened[1])
    names = [line.get("context") for line in lines]
    assert names == [None] * 8 + [context_name(A)] * 10 + [context_name(C)] * 8
    assert ["gradient" in line for line in lines] == [False] * 16 + [True] * 2 + [False] * 8


def every_kind() -> list[CandidateBatch]:
    return [
        CandidateBatch([A], reference=A),
        CandidateBatch([B, C], reference=A),
        CandidateBatch([B], reference=B),
        *(CandidateBatch([D], gradient_step=step, reference=B) for step in range(5)),
        CandidateBatch([D], reference=D),
    ]


@pytest.mark.parametrize("kept", range(1, 49, 7))
def test_a_resumed_search_in_contexts_is_the_uninterrupted_one(tmp_path: Path, kept: int) -> None:
    """What the journal holds is not evaluated again, and costs as much as it did; nothing is for the fifth step."""
    path, whole = tmp_path / "j", Contexts()
    journal = Journal(path, {})
    one = evaluator(whole, journal)
    found = [one.evaluate(batch) for batch in every_kind()]
    journal.close()
    lines, written = path.read_text().splitlines(keepends=True), timeless(path)
    assert len(lines) == 1 + 8 + 16 + 8 + 8 + 8
    path.write_text("".join(lines[: 1 + kept]))
    documents, journal = Contexts(), Journal(path, {}, resume=True)
    other = evaluator(documents, journal)
    assert [other.evaluate(batch) for batch in every_kind()] == found
    journal.close()
    assert len(documents.full) + len(documents.frozen) == 48 - kept
    assert documents.full == whole.full[len(whole.full) - len(documents.full) :]
    assert documents.frozen == whole.frozen[len(whole.frozen) - len(documents.frozen) :]
    assert (other.tokens, other.mean_losses, other.improvements) == (one.tokens, one.mean_losses, one.improvements)
    assert timeless(path) == written


@pytest.mark.parametrize("tokens", [230, 231, 232, 240, 252, 253, 300])
def test_a_budget_ends_passes_in_contexts(opened: Opened, tokens: int) -> None:
    """Where the next one would pass it."""
    documents = Contexts()
    one = evaluator(documents, opened[0], tokens)
    one.evaluate(CandidateBatch([A], reference=A))
    with pytest.raises(Stop, match=f"^the budget of {tokens} token-evaluations is spent$"):
        one.evaluate(CandidateBatch([B, C, D, Scaling([9.0] * 8)], reference=A))
    assert one.tokens == 230 + sum(COSTS[item] for _, _, item, _ in documents.frozen) <= tokens
    assert tokens - one.tokens < COSTS[len(documents.frozen) % 8]
    assert len(evaluations(opened[1])) == 8 + len(documents.frozen)


@pytest.mark.parametrize(("tokens", "paid"), [(230, 0), (235, 0), (236, 1), (244, 1), (245, 2)])
def test_a_gradient_in_contexts_counts_three_times_against_a_budget(opened: Opened, tokens: int, paid: int) -> None:
    """Items 0 and 5 cost 2 and 3."""
    documents = Contexts()
    one = evaluator(documents, opened[0], tokens)
    one.evaluate(CandidateBatch([A], reference=A))
    with pytest.raises(Stop, match=f"^the budget of {tokens} token-evaluations is spent$"):
        one.evaluate(CandidateBatch([B, C], gradient_step=0, reference=A))
    assert [item for _, _, item, _ in documents.frozen] == [0, 5][:paid]
    assert one.tokens == 230 + 3 * sum([2, 3][:paid])


def test_the_time_budget_counts_passes_in_contexts(opened: Opened, clock: list[float]) -> None:
    class Taking(Contexts):
        def evaluate_in_context(
            self, batches: Sequence[Batch], *, gradient: bool, reference: Scaling
        ) -> Iterator[tuple[int, list[CandidateLoss]]]:
            for answer in super().evaluate_in_context(batches, gradient=gradient, reference=reference):
                clock[0] += 0.5
                yield answer

    one = Evaluator(Taking(), opened[0], budget=Budget(seconds=5.0))
    one.evaluate(CandidateBatch([A], reference=A))
    with pytest.raises(Stop, match=r"^the time budget of 5 s is spent$"):
        one.evaluate(CandidateBatch([B], reference=A))
    assert len(evaluations(opened[1])) == 10


def test_a_gradient_in_contexts_must_have_one(opened: Opened) -> None:
    class Flat(Contexts):
        def in_context(
            self, candidate: Scaling, item: int, reference: Scaling, *, gradient: bool = False
        ) -> CandidateLoss:
            return super().in_context(candidate, item, reference)

    with pytest.raises(LongRopeError, match="it has no gradient, and the method asks for one"):
        evaluator(Flat(), opened[0]).evaluate(CandidateBatch([B], gradient_step=0, reference=A))


def test_races_leave_contexts_alone(opened: Opened) -> None:
    """Nobody is dropped in them, and a reference gets its whole pass."""
    documents = Contexts()
    one = evaluator(documents, opened[0], racing=True)
    one.evaluate(CandidateBatch([BEST], reference=BEST))
    one.evaluate(CandidateBatch([WORSE], reference=BEST))
    one.evaluate(CandidateBatch([WORSE], reference=WORSE))
    assert (len(documents.full), len(documents.frozen)) == (16, 8)
    assert list(one.mean_losses) == [BEST, WORSE]
    assert not one.race_estimates


def own_starts(method: Method) -> list[Scaling]:
    return [scheme(name, ROPE, LENGTH) for name in method.schemes]


@pytest.mark.parametrize("ramps", [1, 2, 5])
def test_all_closed_forms_in_contexts_cost_what_their_method_says(tmp_path: Path, ramps: int) -> None:
    """Where there are fewer than three besides the first, each of them gets a full pass."""
    documents, method = Contexts(tokens=(20,) * 8, context_tokens=(5,) * 8), Auto(ramps, Gradient(steps=2))
    outcome = search_with(tmp_path / "j", method, objective=documents, starts=own_starts(method))
    assert outcome.tokens == 20 * method.passes(8, 0.25)


@pytest.mark.parametrize("name", ["auto", "gradient", "cma"])
def test_a_search_in_contexts_costs_what_its_method_says(tmp_path: Path, name: str) -> None:
    """From its own starts, which CMA-ES does not count."""
    documents = Contexts(tokens=(20,) * 8, context_tokens=(5,) * 8)
    outcome = search_with(tmp_path / "j", SMALL[name], objective=documents, starts=own_starts(SMALL[name]))
    assert outcome.stopped == "the method is done"
    starts = len(SMALL[name].schemes) * 8 if name == "cma" else 0
    steps = {"auto": 8, "gradient": 12, "cma": 0}[name]
    repeated = 3 * 5 * (2 * steps - sum("gradient" in line for line in evaluations(tmp_path / "j")))
    assert outcome.tokens + repeated == 20 * (SMALL[name].passes(8, 0.25) + starts)
    assert repeated <= 30
    assert outcome.tokens == 20 * len(documents.full) + 5 * sum(3 if frozen[3] else 1 for frozen in documents.frozen)
    for loss, one in outcome.ranked:
        assert loss == pytest.approx(documents.mean(one))


@pytest.mark.parametrize("name", ["auto", "gradient", "cma"])
def test_every_search_in_contexts_can_be_resumed(tmp_path: Path, name: str) -> None:
    whole = search_with(tmp_path / "j", SMALL[name], objective=Contexts())
    lines, written = (tmp_path / "j").read_text().splitlines(keepends=True), timeless(tmp_path / "j")
    for kept in range(1, len(lines), max(1, len(lines) // 6)):
        (tmp_path / "j").write_text("".join(lines[:kept]))
        again = search_with(tmp_path / "j", SMALL[name], objective=Contexts(), resume=True)
        assert (again.ranked, again.improvements, again.tokens) == (whole.ranked, whole.improvements, whole.tokens)
        assert again.closed_form == whole.closed_form
        assert timeless(tmp_path / "j") == written
