from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from searching import (
    BATCHES,
    HERE,
    ITEMS,
    SMALL,
    TOKENS,
    Documents,
    build,
    build_dying,
    build_dying_once,
    build_marking,
    build_marking_together,
    build_refused,
    build_refusing,
    search_with,
    slope,
    timeless,
)

from longrope.errors import LongRopeError
from longrope.objectives.local_workers import RETRIES, LocalPool, PooledObjective, Worker
from longrope.scaling import Scaling
from longrope.search.budget import Budget
from longrope.search.evaluator import Evaluator
from longrope.search.journal import Journal
from longrope.search.protocol import CandidateBatch, CandidateLoss


@pytest.fixture
def engine() -> Iterator[Callable[..., LocalPool]]:
    begun: list[LocalPool] = []

    def begin(build_: Callable[..., object], count: int) -> LocalPool:
        begun.append(LocalPool(build_, count))
        return begun[-1]

    yield begin
    for one in begun:
        one.close()


@pytest.fixture(scope="module")
def two_workers() -> Iterator[LocalPool]:
    """Two processes for several tests."""
    pool = LocalPool(build, 2)
    yield pool
    pool.close()


def answers(engine: LocalPool, *, gradient: bool = False) -> dict[int, list[CandidateLoss]]:
    return dict(PooledObjective(engine, ITEMS, TOKENS).evaluate(BATCHES, gradient=gradient))


def test_a_worker_unpacks_items_once_and_keeps_several_sets() -> None:
    made: list[object] = []

    def connect(items: list[tuple[int, float]]) -> Documents:
        made.append(items)
        return Documents((5,), lambda _, item: items[item][1])

    worker, one = Worker(lambda _: connect, 0), Scaling([1.0] * 8)
    packed = {name: pickle.dumps([(5, added)]) for name, added in (("a", 1.0), ("b", 2.0))}
    found = [worker.evaluate(name, packed[name], [(one, 0)], False)[0].loss for name in "abab"]
    assert found[0] == found[2] == found[1] - 1 == found[3] - 1
    assert made == [[(5, 1.0)], [(5, 2.0)]]


def test_answers_are_those_of_this_process(engine: Callable[..., LocalPool]) -> None:
    workers = engine(build, 3)
    for gradient in (False, True):
        assert answers(workers, gradient=gradient) == dict(HERE.evaluate(BATCHES, gradient=gradient))
    assert answers(workers, gradient=True)[3][0].gradient == tuple(slope(BATCHES[3][0][0]))


def test_searches_are_those_of_this_process(two_workers: LocalPool, tmp_path: Path) -> None:
    shared = PooledObjective(two_workers, ITEMS, TOKENS)
    for name in SMALL:
        fields = {"batch_size": 2, "racing": True, "seed": 3}
        here = search_with(tmp_path / f"{name}.here", SMALL[name], objective=HERE, **fields)
        there = search_with(tmp_path / f"{name}.there", SMALL[name], objective=shared, **fields)
        assert (there.ranked, there.improvements, there.tokens) == (here.ranked, here.improvements, here.tokens)
        assert set(timeless(tmp_path / f"{name}.there")) == set(timeless(tmp_path / f"{name}.here"))


def test_all_workers_work(engine: Callable[..., LocalPool], tmp_path: Path) -> None:
    answers(engine(partial(build_marking_together, tmp_path, 2), 2))
    lines = [path.read_text().count("\n") for path in tmp_path.iterdir()]
    assert len(lines) == 2
    assert sum(lines) == len(BATCHES)
    assert min(lines) > 0


def lines_by_process(folder: Path) -> tuple[int, dict[int, int]]:
    """The process that was killed, and how many answers each process gave."""
    killed = int((folder / "killed").read_text())
    counts = {int(path.name): path.read_text().count("\n") for path in folder.iterdir() if path.name != "killed"}
    return killed, counts


@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_worker_is_replaced(engine: Callable[..., LocalPool], tmp_path: Path, count: int) -> None:
    found = answers(engine(partial(build_dying_once, tmp_path, 2), count))
    assert found == dict(HERE.evaluate(BATCHES, gradient=False))
    killed, counts = lines_by_process(tmp_path)
    assert counts.pop(killed) == 2
    assert sum(counts.values()) >= len(BATCHES) - 2  # by the others; what was ready at the kill may be computed again


def test_a_search_outlives_a_killed_worker(engine: Callable[..., LocalPool], tmp_path: Path) -> None:
    folder = tmp_path / "processes"
    folder.mkdir()
    shared = PooledObjective(engine(partial(build_dying_once, folder, 20), 2), ITEMS, TOKENS)
    there = search_with(tmp_path / "there", SMALL["cma"], objective=shared)
    here = search_with(tmp_path / "here", SMALL["cma"], objective=HERE)
    killed, counts = lines_by_process(folder)
    assert counts[killed] == 20
    assert (there.ranked, there.improvements, there.tokens) == (here.ranked, here.improvements, here.tokens)


@pytest.mark.slow
def test_workers_that_always_die_are_an_error_after_some_retries(engine: Callable[..., LocalPool]) -> None:
    with pytest.raises(LongRopeError, match=rf"a worker died {RETRIES + 1} times in a row.* use fewer workers"):
        answers(engine(build_dying, 1))


def test_a_refusal_of_a_worker_arrives_with_its_message(engine: Callable[..., LocalPool]) -> None:
    workers = engine(build_refusing, 2)
    for _ in range(2):  # and the engine still works
        with pytest.raises(LongRopeError, match="out of memory at length 2048; use a shorter one"):
            answers(workers)


def test_a_refusal_to_load_arrives_with_its_message(engine: Callable[..., LocalPool]) -> None:
    with pytest.raises(LongRopeError, match="there is no such model; look for it"):
        answers(engine(build_refused, 1))


def test_who_stops_listening_can_ask_again(two_workers: LocalPool, tmp_path: Path) -> None:
    """As a search does whose time is spent: answers nobody waits for are not given to the next question."""
    shared = PooledObjective(two_workers, ITEMS, TOKENS)
    for _ in range(3):
        next(iter(shared.evaluate(BATCHES, gradient=False)))
    assert answers(two_workers) == dict(HERE.evaluate(BATCHES, gradient=False))
    journal = Journal(tmp_path / "j", {})
    candidates = [batch[0][0] for batch in BATCHES[::3]]
    found = Evaluator(shared, journal, budget=Budget()).evaluate(CandidateBatch(candidates))
    journal.close()
    assert [answer.loss for answer in found] == pytest.approx(
        [sum(HERE.loss(one, item) for item in range(3)) / 3 for one in candidates]
    )


def test_after_close_no_process_is_left_and_it_can_begin_again(tmp_path: Path) -> None:
    workers = LocalPool(partial(build_marking, tmp_path), 2)
    first = answers(workers)
    workers.close()
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)
    assert answers(workers) == first
    workers.close()
    workers.close()


POOL = """
import os, pickle, signal, time
from longrope.objectives.local_workers import LocalPool

if __name__ == "__mp_main__" and os.path.exists("slow"):  # in a worker, before it has a task
    open("importing", "w").close()
    time.sleep(1)

class Sleeping:
    def __init__(self, seconds):
        self.seconds = seconds

    def evaluate(self, batches, *, gradient):
        open(f"at {self.seconds}", "w").close()
        while not (os.path.exists("at 1") and os.path.exists("at 2")):  # until both workers are there
            time.sleep(0.05)
        if self.seconds == 600:
            time.sleep(600)
        yield 0, [os.getpid()]

def build(rank):
    return Sleeping

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pool = LocalPool(build, 2)
    try:
        for _ in pool.run([(str(seconds), pickle.dumps(seconds), [], False) for seconds in (1, 2, 600)]):
            while not os.path.exists("at 600"):
                time.sleep(0.05)
            if not os.path.exists("said"):
                open("said", "w").close()
                print("working", flush=True)
    except KeyboardInterrupt:
        pool.close()
        print("interrupted")
"""


def start_pool(folder: Path) -> subprocess.Popen[str]:
    """Start a process with two workers, in a session of its own."""
    (folder / "pool.py").write_text(POOL)
    return subprocess.Popen(
        [sys.executable, str(folder / "pool.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        start_new_session=True,
    )


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", ["SIGINT", "SIGKILL"])
def test_workers_end_with_the_process_that_began_them(number: str, tmp_path: Path) -> None:
    """One worker waits, the other works: after Ctrl-C, which all of them get, and after a kill of the first process."""
    process = start_pool(tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    if number == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    out, errors = process.communicate(timeout=60)  # which ends when no worker has the pipes
    assert out == ("interrupted\n" if number == "SIGINT" else "")
    assert "Traceback" not in errors


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_workers_that_still_import_end_in_silence(tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    with start_pool(tmp_path) as process:
        while not (tmp_path / "importing").exists():
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60) == ("interrupted\n", "")
