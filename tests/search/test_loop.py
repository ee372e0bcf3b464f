from __future__ import annotations

import gc
import math
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from searching import (
    DRAWN,
    ROPE,
    SMALL,
    STARTS,
    TARGET,
    Documents,
    attentive,
    attentive_slope,
    counted,
    evaluations,
    never,
    quadratic,
    search_with,
    slope,
    timeless,
)

from longrope.errors import LongRopeError
from longrope.scaling import Scaling
from longrope.schemes import scheme
from longrope.search.auto import Auto
from longrope.search.budget import Budget
from longrope.search.cma import Cma
from longrope.search.evolution import Paper, Simple
from longrope.search.gradient import Gradient
from longrope.search.journal import Journal
from longrope.search.loop import SearchOutcome, SearchProgress, run_search
from longrope.search.protocol import CandidateBatch, FunctionObjective, Proposals
from longrope.search.registry import METHODS
from longrope.search.space import START_TOKENS

KINDS = pytest.mark.parametrize("name", SMALL)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "search.jsonl"


def without_time(outcome: SearchOutcome) -> tuple[object, ...]:
    return outcome.stopped, outcome.ranked, outcome.improvements, outcome.tokens


def spent(path: Path) -> int:
    """Token-evaluations of one-token items in a journal."""
    return sum(3 if "gradient" in line else 1 for line in evaluations(path))


@KINDS
@pytest.mark.parametrize("tokens", [3, 4, 6, 7, 11, 12, 13, 20, 25])
def test_the_budget_is_never_passed_and_used_up(path: Path, name: str, tokens: int) -> None:
    calls: list[Scaling] = []
    outcome = search_with(path, SMALL[name], objective=counted(calls), tokens=tokens)
    assert outcome.tokens == spent(path)
    assert len(calls) == len(evaluations(path))
    assert outcome.stopped == f"the budget of {tokens} token-evaluations is spent"
    assert tokens - 3 < outcome.tokens <= tokens
    if name in DRAWN:
        assert outcome.tokens == len(set(calls)) == len(outcome.ranked) == tokens


@KINDS
@pytest.mark.parametrize("tokens", [1, 5, 36])
def test_a_budget_below_the_first_step_is_an_error_that_says_so(path: Path, name: str, tokens: int) -> None:
    with pytest.raises(LongRopeError, match=rf"budget = {tokens}: one step of this search takes 37 token-evaluations"):
        search_with(path, SMALL[name], objective=Documents((5, 5, 9, 9, 9)), tokens=tokens)


def test_duplicates_are_evaluated_once(path: Path) -> None:
    """Without noise, few distinct candidates can come."""
    for name, still in {"p": Paper(12, 3, 3, 6, probability=0.0), "s": Simple(12, sigma=0.0, generations=3)}.items():
        calls: list[Scaling] = []
        outcome = search_with(path.with_name(name), still, objective=counted(calls))
        assert outcome.stopped == "the method is done"
        assert 3 <= len(calls) == len(set(calls)) == len(outcome.ranked) == outcome.tokens < still.passes(1)


@KINDS
def test_it_ends_with_its_generations(path: Path, name: str) -> None:
    outcome = search_with(path, SMALL[name])
    assert outcome.stopped == "the method is done"
    assert outcome.best is outcome.ranked[0][1]
    assert list(outcome.ranked) == sorted(outcome.ranked, key=lambda one: one[0])
    assert all(quadratic(one) == loss for loss, one in outcome.ranked)


@KINDS
def test_records_are_the_steps_of_the_best(path: Path, name: str) -> None:
    """Each is better than the one before, and the last one is the best of all."""
    outcome = search_with(path, SMALL[name])
    losses = [record.loss for record in outcome.improvements]
    assert losses == sorted(set(losses), reverse=True)
    assert (losses[-1], outcome.improvements[-1].scaling) == outcome.ranked[0]
    spent_then = [record.tokens for record in outcome.improvements]
    assert spent_then == sorted(spent_then)
    assert spent_then[-1] <= outcome.tokens


def test_less_time_than_a_start_takes_still_finds_it(path: Path) -> None:
    outcome = search_with(path, SMALL["auto"], objective=Documents(), seconds=1e-9)
    assert outcome.stopped == "the time budget of 1e-09 s is spent"
    assert [one.factors for _, one in outcome.ranked] == [pytest.approx(STARTS[0].factors)]


def scripted(losses: dict[int, float]) -> Callable[[Scaling], float]:
    """Losses by the number of the call, 9 otherwise."""
    numbers = count()
    return lambda _: losses.get(next(numbers), 9.0)


def endless() -> Proposals:
    """One new candidate a generation."""
    for i in count():
        yield CandidateBatch([Scaling([1.0 + i])])


def given_batches(*batches: CandidateBatch) -> Proposals:
    """Proposals that do not depend on the losses."""
    for batch in batches:  # noqa: UP028  `yield from` would pass the losses on
        yield batch


def with_states(*states: dict[str, str]) -> Proposals:
    """One new candidate a generation, with a state."""
    return given_batches(*(CandidateBatch([Scaling([1.0 + i])], state=state) for i, state in enumerate(states)))


@pytest.mark.parametrize(("states", "closed_form"), [([{}, {"closed_form": "ntk"}, {}], "ntk"), ([{}, {}], "")])
def test_the_outcome_names_the_closed_form_and_the_journal_keeps_each_state(
    path: Path, states: list[dict[str, str]], closed_form: str
) -> None:
    journal = Journal(path, {})
    outcome = run_search(FunctionObjective(quadratic), with_states(*states), journal)
    journal.close()
    assert outcome.closed_form == closed_form
    again = Journal(path, {}, resume=True)
    assert again.states == dict(enumerate(states))
    resumed = run_search(FunctionObjective(never), with_states(*states), again)
    assert without_time(resumed) == without_time(outcome)
    with pytest.raises(LongRopeError, match="generation 1"):
        run_search(FunctionObjective(never), with_states(states[0], {"closed_form": "pi"}), again)
    again.close()


def test_pairs_of_a_pass_and_races_are_as_asked(path: Path) -> None:
    """One pair, and all samples of each candidate, unless asked for more pairs or for races."""
    candidates = [Scaling((TARGET * times).tolist()) for times in (1.0, 1.01, 3.0, 3.1, 3.2)]
    asked = {"usual": {}, "pairs": {"batch_size": 2}, "races": {"racing": True}}
    passes: dict[str, list[int]] = {name: [] for name in asked}
    for name, options in asked.items():
        journal = Journal(path.with_name(name), {})
        batches = given_batches(CandidateBatch(candidates[:2]), CandidateBatch(candidates[2:]))
        run_search(Documents((5,) * 8, sizes=passes[name]), batches, journal, **options)
        journal.close()
    assert passes["usual"] == [1] * 40
    assert passes["pairs"] == [2] * 20
    assert sum(passes["races"]) < 40
    assert set(passes["races"]) == {1}


def test_a_search_keeps_nothing_alive(path: Path) -> None:
    """Such as the model of its objective, which another one needs the memory of."""

    class Loss:
        def __call__(self, scaling: Scaling) -> float:
            return quadratic(scaling)

    loss = Loss()
    gone = weakref.ref(loss)
    gc.disable()
    try:
        search_with(path, SMALL["paper"], objective=loss, on_progress=lambda _: None)
        del loss
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_patience(path: Path, patience: int) -> None:
    """One candidate a generation; the fourth is the last that is better."""
    seen: list[SearchProgress] = []
    losses = FunctionObjective(scripted({0: 3.0, 1: 2.0, 2: 2.0, 3: 1.0, 5: 1.0}))
    journal = Journal(path, {})
    outcome = run_search(losses, endless(), journal, budget=Budget(patience=patience), on_progress=seen.append)
    journal.close()
    last = 1 if patience == 1 else 3
    assert outcome.stopped == f"no better candidate in {patience} generations"
    assert len(outcome.ranked) == (last + 1) + patience
    assert outcome.best.factors == (1.0 + last,)
    assert [progress.generation for progress in seen] == list(range(last + patience + 1))


COMPARING = {**SMALL, "auto": Auto(gradient=Gradient(steps=35)), "gradient": Gradient(steps=35)}


@KINDS
def test_patience_ends_every_method_and_cuts_nothing_else(tmp_path: Path, name: str) -> None:
    """Up to where it stops, the search is the one without patience."""
    target = scheme("yarn", ROPE, 2048)
    flat = FunctionObjective(lambda one: 1.0 if one.factors != target.factors else 0.5, slope)
    impatient = search_with(tmp_path / "a", COMPARING[name], objective=flat, patience=2)
    assert impatient.stopped == "no better candidate in 2 generations"
    whole = search_with(tmp_path / "b", COMPARING[name], objective=flat)
    assert timeless(tmp_path / "b")[: len(timeless(tmp_path / "a"))] == timeless(tmp_path / "a")
    assert impatient.tokens < whole.tokens


@pytest.mark.parametrize("patience", [1, 2])
def test_steps_on_single_items_try_no_patience(path: Path, patience: int) -> None:
    """Only comparisons on all items do: the start and the first are progress, those after it are not."""
    seen: list[SearchProgress] = []
    better = Documents((5, 5), noise=lambda one, _: 0.0 if len(seen) <= 12 else 1.0)
    outcome = search_with(
        path, Gradient(steps=60), objective=better, starts=STARTS[:1], patience=patience, on_progress=seen.append
    )
    assert outcome.stopped == f"no better candidate in {patience} generations"
    lines = evaluations(path)
    assert sum("gradient" in line for line in lines) == 5 + 5 * patience
    assert sum("gradient" not in line for line in lines) == 2 * (2 + patience)


def led(losses: Sequence[float]) -> Proposals:
    """One new candidate a generation, ranked in the contexts of the first one, then asked for again as its leader."""
    first = Scaling([1.0])
    yield CandidateBatch([first])
    for i in range(1, len(losses)):
        one = Scaling([1.0 + i])
        yield CandidateBatch([one], reference=first)
        yield CandidateBatch([one], reference=one)


@pytest.mark.parametrize(("patience", "evaluated"), [(1, 4), (2, 7)])
def test_a_leader_that_is_known_tries_no_patience(path: Path, patience: int, evaluated: int) -> None:
    """Without frozen contexts, it had its full pass with its generation."""
    losses = [5.0, 4.0, 3.0, 3.5, 2.0, 2.5, 2.5, 1.0]
    journal = Journal(path, {})
    outcome = run_search(
        FunctionObjective(lambda one: losses[round(one.factors[0]) - 1]),
        led(losses),
        journal,
        budget=Budget(patience=patience),
    )
    journal.close()
    assert outcome.stopped == f"no better candidate in {patience} generations"
    assert len(outcome.ranked) == evaluated


@pytest.mark.parametrize("name", ["paper", "gradient"])
def test_the_time_budget_counts_what_came_before_a_resume(
    path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each evaluation takes a second."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def lasting(scaling: Scaling) -> float:
        now[0] += 1.0
        return quadratic(scaling)

    first = search_with(path, SMALL[name], objective=lasting, seconds=4.5)
    assert (first.stopped, first.seconds) == ("the time budget of 4.5 s is spent", 5.0)
    assert len(evaluations(path)) == 5
    again = search_with(path, SMALL[name], objective=never, seconds=4.5, resume=True)
    assert again == first
    longer = search_with(path, SMALL[name], objective=lasting, seconds=9, resume=True)
    assert longer.seconds == len(evaluations(path)) == now[0] == 9
    assert longer.ranked != first.ranked


@KINDS
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_loss_is_the_worst_and_does_not_stop_the_search(path: Path, name: str, bad: float) -> None:
    """Where the fourth factor is large; the first of the starts, PI, is there too."""
    calls: list[Scaling] = []

    def objective(scaling: Scaling) -> float:
        calls.append(scaling)
        return bad if scaling.factors[3] > 3 else quadratic(scaling)

    outcome = search_with(path, SMALL[name], objective=objective)
    written = [line["loss"] for line in evaluations(path)]
    assert len(calls) == len(written)
    assert 0 < written.count(None) < len(written)
    assert math.isfinite(outcome.ranked[0][0])
    assert outcome.ranked[0][0] < quadratic(STARTS[2])
    assert outcome.ranked[-1][0] == math.inf
    again = search_with(path, SMALL[name], objective=scripted({}), resume=True)
    assert again.ranked == outcome.ranked


@KINDS
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nothing_finite_is_an_error(path: Path, name: str, bad: float) -> None:
    seen: list[SearchProgress] = []
    said = "^no candidate has a finite loss: check the starts and the function that returns the losses.$"
    with pytest.raises(LongRopeError, match=said):
        search_with(path, SMALL[name], objective=lambda _: bad, on_progress=seen.append)
    assert not seen
    assert all(line["loss"] is None for line in evaluations(path))


@KINDS
def test_progress_is_told_after_every_evaluation(path: Path, name: str) -> None:
    seen: list[SearchProgress] = []
    outcome = search_with(path, SMALL[name], on_progress=seen.append)
    lines = evaluations(path)
    assert [progress.tokens for progress in seen] == np.cumsum([1 + 2 * ("gradient" in one) for one in lines]).tolist()
    assert [progress.loss for progress in seen] == np.minimum.accumulate([one["loss"] for one in lines]).tolist()
    assert all(quadratic(progress.best) == progress.loss for progress in seen)
    assert seen[-1].seconds == outcome.seconds
    assert seen[-1].tokens == outcome.tokens


@pytest.mark.parametrize("name", DRAWN)
def test_progress_counts_distinct_candidates(path: Path, name: str) -> None:
    seen: list[SearchProgress] = []
    outcome = search_with(path, SMALL[name], on_progress=seen.append)
    assert [progress.evaluations for progress in seen] == list(range(1, len(outcome.ranked) + 1))


@KINDS
@pytest.mark.parametrize("start_tokens", [(0,), (0, 4, 8, 16)])
@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 6, 9, 11, 12, 13, 14, 19, 25])
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, name: str, start_tokens: tuple[int, ...], stop_at: int
) -> None:
    whole, cut, first, second = tmp_path / "whole", tmp_path / "cut", [], []
    fields = {"start_tokens": start_tokens, "seed": 5, "search_attention": stop_at % 2 == 0}
    expected = search_with(whole, SMALL[name], **fields)
    stop_at = min(stop_at, len(evaluations(whole)))
    with pytest.raises(KeyboardInterrupt):
        search_with(cut, SMALL[name], objective=counted(first, stop_at), **fields)
    found = search_with(cut, SMALL[name], objective=counted(second), resume=True, **fields)
    assert without_time(found) == without_time(expected)
    assert timeless(cut) == timeless(whole)
    assert len(first) == stop_at - 1
    assert len(first) + len(second) == len(evaluations(whole))


@KINDS
@pytest.mark.parametrize(("rows", "racing"), [(1, True), (3, False), (3, True)])
@pytest.mark.parametrize("kept", [2, 17, 40, 61])
def test_cut_anywhere_with_items_rows_and_races_equals_uninterrupted(
    tmp_path: Path, name: str, rows: int, racing: bool, kept: int
) -> None:
    """A batch that was half written is written again, so lines may come twice, but no other ones."""
    whole, cut, fields = tmp_path / "whole", tmp_path / "cut", {"batch_size": rows, "racing": racing}
    fields["objective"] = Documents(apart=0.2)
    expected = search_with(whole, SMALL[name], **fields)
    lines = whole.read_text().splitlines(keepends=True)
    cut.write_text("".join(lines[:kept]))
    found = search_with(cut, SMALL[name], resume=True, **fields)
    assert without_time(found) == without_time(expected)
    assert set(timeless(cut)) == set(timeless(whole))


@KINDS
def test_interrupted_again_and_again(tmp_path: Path, name: str) -> None:
    expected, calls = search_with(tmp_path / "whole", SMALL[name]), 0
    while True:
        few: list[Scaling] = []
        try:
            found = search_with(tmp_path / "cut", SMALL[name], objective=counted(few, 5), resume=True)
            break
        except KeyboardInterrupt:
            calls += len(few)
    assert without_time(found) == without_time(expected)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")
    assert calls + len(few) == len(evaluations(tmp_path / "whole"))


@KINDS
@pytest.mark.parametrize(("patience", "tokens"), [(2, None), (None, 25)])
def test_a_larger_budget_continues_a_smaller_one(
    tmp_path: Path, name: str, patience: int | None, tokens: int | None
) -> None:
    expected = search_with(tmp_path / "whole", SMALL[name], patience=patience, tokens=tokens)
    for smaller in (5, 17):
        search_with(tmp_path / "parts", SMALL[name], tokens=smaller, resume=True)
    before, calls = len(evaluations(tmp_path / "parts")), []
    found = search_with(
        tmp_path / "parts", SMALL[name], patience=patience, tokens=tokens, objective=counted(calls), resume=True
    )
    assert without_time(found) == without_time(expected)
    assert len(calls) == max(0, len(evaluations(tmp_path / "whole")) - before)


@KINDS
def test_the_seed_decides(tmp_path: Path, name: str) -> None:
    one, again, other = (search_with(tmp_path / str(i), SMALL[name], seed=seed) for i, seed in enumerate((3, 3, 4)))
    assert without_time(one) == without_time(again)
    assert (without_time(one) == without_time(other)) == (name not in DRAWN)


def test_an_error_of_the_objective_passes_through_and_loses_nothing(path: Path) -> None:
    calls: list[Scaling] = []

    def objective(scaling: Scaling) -> float:
        calls.append(scaling)
        if len(calls) == 4:
            raise LongRopeError("out of memory at length 2048")
        return quadratic(scaling)

    with pytest.raises(LongRopeError, match="out of memory"):
        search_with(path, SMALL["paper"], objective=objective)
    assert len(evaluations(path)) == 3


LARGER = {
    "auto": Auto(),
    "gradient": Gradient(),
    "cma": Cma(population=12),
    "paper": Paper(generations=25),
    "simple": Simple(generations=15),
}


@KINDS
@pytest.mark.parametrize("wanted", [8, 64])
def test_the_best_start_tokens_are_found(path: Path, name: str, wanted: int) -> None:
    """They stand at different places of the list, and matter less than the factors at first."""

    def loss(scaling: Scaling) -> float:
        off = START_TOKENS.index(scaling.start_tokens) - START_TOKENS.index(wanted)
        return quadratic(scaling) + 0.02 * off**2 - 0.001 * abs(scaling.start_tokens - 8)

    outcome = search_with(path, LARGER[name], objective=loss, start_tokens=START_TOKENS)
    assert outcome.best.start_tokens == wanted


@KINDS
def test_the_attention_factor_moves_towards_the_best(path: Path, name: str) -> None:
    objective = FunctionObjective(attentive, attentive_slope)
    outcome = search_with(path, LARGER[name], objective=objective, search_attention=True)
    assert abs(outcome.best.attention_factor - 1.15) < 0.05
    assert outcome.ranked[0][0] < min(attentive(start) for start in STARTS)


@KINDS
def test_every_method_beats_its_starts(path: Path, name: str) -> None:
    outcome = search_with(path, LARGER[name], tokens=1000)
    assert outcome.ranked[0][0] < 0.6 * min(quadratic(start) for start in STARTS)


SCRIPT = """
import os, signal, sys
from pathlib import Path
from longrope.search.registry import METHODS
from searching import quadratic, search_with

calls = []

def killing(scaling):
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(scaling)
    return quadratic(scaling)

search_with(Path(sys.argv[1]), METHODS[sys.argv[2]], objective=killing, start_tokens=(0, 4, 8), tokens=200, resume=True)
"""


@pytest.mark.parametrize(("name", "kills"), [("paper", (30, 50)), ("cma", (80,))])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, name: str, kills: tuple[int, ...]) -> None:
    """Each finished evaluation is in the file when the next one begins."""
    path, tests = tmp_path / "killed", str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
    for after in kills:
        process = subprocess.run([sys.executable, "-c", SCRIPT, str(path), name, str(after)], env=environment)
        assert process.returncode == -signal.SIGKILL
    assert len(evaluations(path)) == sum(kills)
    calls: list[Scaling] = []
    limits = {"start_tokens": (0, 4, 8), "tokens": 200}
    found = search_with(path, METHODS[name], objective=counted(calls), resume=True, **limits)
    expected = search_with(tmp_path / "whole", METHODS[name], **limits)
    assert without_time(found) == without_time(expected)
    assert timeless(path) == timeless(tmp_path / "whole")
    assert len(calls) == 200 - sum(kills)
