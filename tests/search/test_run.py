from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from searching import quadratic, run_search

from longrope.errors import LongRopeError
from longrope.rope import Scaling
from longrope.search.evolution import PRESETS, Paper, Simple
from longrope.search.journal import Journal
from longrope.search.run import Budget, Progress, search

METHODS = {"paper": Paper(generations=5).sized(12), "simple": Simple(generations=5).sized(12)}
KINDS = pytest.mark.parametrize("name", METHODS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "search.jsonl"


def counted(calls: list[Scaling], stop_at: int | None = None) -> Callable[[Scaling], float]:
    """The quadratic, which is interrupted in its `stop_at`-th call."""

    def objective(scaling: Scaling) -> float:
        if len(calls) + 1 == stop_at:
            raise KeyboardInterrupt
        calls.append(scaling)
        return quadratic(scaling)

    return objective


def losses_in(path: Path) -> list[tuple[object, ...]]:
    lines = map(json.loads, path.read_text().splitlines())
    return [(line["loss"], line["factors"], line["start_tokens"]) for line in lines if "loss" in line]


@KINDS
@pytest.mark.parametrize("budget", [1, 2, 11, 12, 13, 20])
def test_the_budget_is_exact(path: Path, name: str, budget: int) -> None:
    calls: list[Scaling] = []
    outcome = run_search(path, METHODS[name], objective=counted(calls), budget=budget)
    assert len(calls) == len(set(calls)) == len(outcome.ranked) == len(losses_in(path)) == budget
    assert outcome.stopped == f"the budget of {budget} evaluations is spent"


@KINDS
def test_duplicates_are_evaluated_once(path: Path, name: str) -> None:
    """Without noise, few distinct candidates can come."""
    still = {"paper": Paper(12, 3, 3, 6, probability=0.0), "simple": Simple(12, sigma=0.0, generations=3)}[name]
    calls: list[Scaling] = []
    outcome = run_search(path, still, objective=counted(calls))
    assert outcome.stopped == "all generations are done"
    assert 3 <= len(calls) == len(set(calls)) == len(outcome.ranked) < still.evaluations


@KINDS
@pytest.mark.parametrize("budget", [0, -1])
def test_no_budget_at_all(path: Path, name: str, budget: int) -> None:
    with pytest.raises(LongRopeError, match=f"budget evaluations = {budget} allows nothing"):
        run_search(path, METHODS[name], budget=budget)


@KINDS
def test_it_ends_with_its_generations(path: Path, name: str) -> None:
    outcome = run_search(path, METHODS[name])
    assert outcome.stopped == "all generations are done"
    assert len(outcome.ranked) <= METHODS[name].evaluations
    assert outcome.best is outcome.ranked[0][1]


def scripted(losses: dict[int, float]) -> Callable[[Scaling], float]:
    """Losses by the number of the call, 9 otherwise."""
    numbers = count()
    return lambda _: losses.get(next(numbers), 9.0)


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_patience(path: Path, patience: int) -> None:
    """One candidate a generation; the fourth is the last that is better."""
    endless = ([Scaling([1.0 + i])] for i in count())
    seen: list[Progress] = []
    rng = np.random.default_rng(0)
    losses = scripted({0: 3.0, 1: 2.0, 2: 2.0, 3: 1.0, 5: 1.0})
    journal = Journal(path, {})
    outcome = search(losses, endless, rng, journal, budget=Budget(patience=patience), watch=seen.append)
    journal.close()
    last = 1 if patience == 1 else 3
    assert outcome.stopped == f"no better candidate in {patience} generations"
    assert len(outcome.ranked) == (last + 1) + patience
    assert outcome.best.factors == (1.0 + last,)
    assert [progress.generation for progress in seen] == list(range(last + patience + 1))


def slow(scaling: Scaling) -> float:
    time.sleep(0.02)
    return quadratic(scaling)


@KINDS
def test_the_time_budget_counts_what_came_before_a_resume(path: Path, name: str) -> None:
    first = run_search(path, METHODS[name], objective=slow, seconds=0.1)
    assert first.stopped.startswith("the time budget of")
    assert 0.1 <= first.seconds < 0.5
    assert 2 <= len(first.ranked) <= 5
    again = run_search(path, METHODS[name], objective=slow, seconds=0.1, resume=True)
    assert again == first
    longer = run_search(path, METHODS[name], objective=slow, seconds=0.2, resume=True)
    assert len(first.ranked) < len(longer.ranked) <= 11
    written = [json.loads(line).get("seconds", 0) for line in path.read_text().splitlines()]
    assert longer.seconds == pytest.approx(sum(written))


@KINDS
def test_a_nan_is_the_worst_and_does_not_stop_the_search(path: Path, name: str) -> None:
    broken = scripted({})
    calls: list[Scaling] = []

    def objective(scaling: Scaling) -> float:
        calls.append(scaling)
        return [math.nan, math.inf, -math.inf][len(calls) % 3] if len(calls) % 2 else quadratic(scaling)

    outcome = run_search(path, METHODS[name], objective=objective)
    written = [loss for loss, *_ in losses_in(path)]
    assert len(calls) == len(written) > 12
    assert 0.4 < written.count(None) / len(written) < 0.6
    assert math.isfinite(outcome.ranked[0][0])
    assert outcome.ranked[-1][0] == math.inf
    again = run_search(path, METHODS[name], objective=broken, resume=True)
    assert again == outcome


@KINDS
@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_nothing_finite_is_an_error(path: Path, name: str, loss: float) -> None:
    seen: list[Progress] = []
    with pytest.raises(LongRopeError, match=r"no candidate has a finite loss.*float32"):
        run_search(path, METHODS[name], objective=lambda _: loss, watch=seen.append)
    assert not seen
    assert len(losses_in(path)) > 12


@KINDS
def test_progress_is_told_after_every_distinct_candidate(path: Path, name: str) -> None:
    seen: list[Progress] = []
    outcome = run_search(path, METHODS[name], watch=seen.append)
    assert [progress.evaluations for progress in seen] == list(range(1, len(outcome.ranked) + 1))
    losses = [loss for loss, *_ in losses_in(path)]
    assert [progress.loss for progress in seen] == np.minimum.accumulate(losses).tolist()
    assert all(quadratic(progress.best) == progress.loss for progress in seen)
    assert seen[-1].seconds == outcome.seconds


@KINDS
@pytest.mark.parametrize("start_tokens", [(0,), (0, 4, 8, 16)])
@pytest.mark.parametrize("stop_at", [1, 2, 3, 11, 12, 13, 14, 19, 25, 30])
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, name: str, start_tokens: tuple[int, ...], stop_at: int
) -> None:
    whole, cut, first, second = tmp_path / "whole", tmp_path / "cut", [], []
    expected = run_search(whole, METHODS[name], start_tokens=start_tokens, seed=5)
    with pytest.raises(KeyboardInterrupt):
        run_search(cut, METHODS[name], start_tokens=start_tokens, seed=5, objective=counted(first, stop_at))
    found = run_search(cut, METHODS[name], start_tokens=start_tokens, seed=5, objective=counted(second), resume=True)
    assert found.ranked == expected.ranked
    assert found.stopped == expected.stopped
    assert losses_in(cut) == losses_in(whole)
    assert len(first) == stop_at - 1
    assert len(first) + len(second) == len(expected.ranked)


@KINDS
def test_interrupted_again_and_again(tmp_path: Path, name: str) -> None:
    expected, calls = run_search(tmp_path / "whole", METHODS[name]), 0
    while True:
        few: list[Scaling] = []
        try:
            found = run_search(tmp_path / "cut", METHODS[name], objective=counted(few, 5), resume=True)
            break
        except KeyboardInterrupt:
            calls += len(few)
    assert found.ranked == expected.ranked
    assert calls + len(few) == len(expected.ranked)
    states = [(tmp_path / name).read_text().count("generation") for name in ("whole", "cut")]
    assert states[0] == states[1] == METHODS[name].generations + 1


@KINDS
@pytest.mark.parametrize(("patience", "budget"), [(2, None), (None, 25)])
def test_a_larger_budget_continues_a_smaller_one(
    tmp_path: Path, name: str, patience: int | None, budget: int | None
) -> None:
    expected = run_search(tmp_path / "whole", METHODS[name], patience=patience, budget=budget)
    for smaller in (5, 17):
        run_search(tmp_path / "parts", METHODS[name], budget=smaller, resume=True)
    calls: list[Scaling] = []
    found = run_search(
        tmp_path / "parts", METHODS[name], patience=patience, budget=budget, objective=counted(calls), resume=True
    )
    assert found.ranked == expected.ranked
    assert len(calls) == len(expected.ranked) - 17


def test_an_error_of_the_objective_passes_through_and_loses_nothing(path: Path) -> None:
    calls: list[Scaling] = []

    def objective(scaling: Scaling) -> float:
        calls.append(scaling)
        if len(calls) == 4:
            raise LongRopeError("out of memory at length 2048")
        return quadratic(scaling)

    with pytest.raises(LongRopeError, match="out of memory"):
        run_search(path, METHODS["paper"], objective=objective)
    assert len(losses_in(path)) == 3


SCRIPT = """
import sys, time
from pathlib import Path
from longrope.search.evolution import PRESETS
from searching import quadratic, run_search

def slow(scaling):
    time.sleep(0.01)
    return quadratic(scaling)

run_search(Path(sys.argv[1]), PRESETS[sys.argv[2]], objective=slow, start_tokens=(0, 4, 8), budget=300, resume=True)
"""


@KINDS
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, name: str) -> None:
    path, environment = tmp_path / "killed", {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    for lines in (40, 110):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path), name], env=environment)
        try:
            deadline = time.monotonic() + 60
            while not path.exists() or path.read_bytes().count(b"\n") < lines:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
    killed_at = len(losses_in(path))
    calls: list[Scaling] = []
    limits = {"start_tokens": (0, 4, 8), "budget": 300}
    found = run_search(path, PRESETS[name], objective=counted(calls), resume=True, **limits)
    expected = run_search(tmp_path / "whole", PRESETS[name], **limits)
    assert found.ranked == expected.ranked
    assert losses_in(path) == losses_in(tmp_path / "whole")
    assert len(calls) == 300 - killed_at
    assert killed_at > 90
