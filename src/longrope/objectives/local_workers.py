"""Evaluate on several processes: local ones, or Ray's beyond one machine. Each holds the model once.

An answer depends on its own batch only, so the outcome does not depend on who computed what; a worker that dies is
replaced and its batch computed again.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from typing import Any, Protocol

from longrope.errors import LongRopeError
from longrope.search.protocol import Batch, CandidateLoss, Objective

RETRIES = 3
MakeObjective = Callable[[Any], Objective]
Task = tuple[str, Any, Batch, bool]


class Worker:
    """What runs in a worker's process: a model, and the objectives made on it so far.

    Args:
        build: from the worker's number to what makes an objective of some items; loads the model.
        rank: the worker's number.
    """

    def __init__(self, build: Callable[[int], MakeObjective], rank: int) -> None:
        self.connect, self.objectives = build(rank), {}

    def evaluate(self, key: str, items: bytes, batch: Batch, gradient: bool) -> list[CandidateLoss]:
        """The answers to one batch on some pickled items, which are unpacked the first time only."""
        if key not in self.objectives:
            self.objectives[key] = self.connect(pickle.loads(items))  # our own parent's bytes
        return next(iter(self.objectives[key].evaluate([batch], gradient=gradient)))[1]


class WorkerPool(Protocol):
    """Runs tasks on workers."""

    def share(self, items: bytes) -> Any:
        """What stands for the items in a task."""
        ...

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """The answers to each task with its index, as they come."""
        ...

    def close(self) -> None:
        """Let the workers go."""
        ...


class PooledObjective:
    """An objective of some items on the workers of an engine.

    Args:
        engine: with its workers.
        items: what counts.
        tokens: the length of each.
    """

    def __init__(self, engine: WorkerPool, items: Sequence[Any], tokens: Sequence[int]) -> None:
        packed = pickle.dumps(list(items))
        self.engine, self.tokens = engine, tuple(tokens)
        self.key, self.items = hashlib.sha256(packed).hexdigest(), engine.share(packed)

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """The answers to each batch, in the order in which they are ready."""
        return self.engine.run([(self.key, self.items, batch, gradient) for batch in batches])


class LocalPool:
    """Processes on this machine.

    Args:
        build: as for `Worker`; must be picklable.
        count: of processes.
    """

    def __init__(self, build: Callable[[int], MakeObjective], count: int) -> None:
        self.build, self.count, self.pool = build, count, None

    def share(self, items: bytes) -> bytes:
        """The bytes themselves."""
        return items

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """As `Engine.run`."""
        left, deaths = dict(enumerate(tasks)), 0
        while left:
            futures: dict[Future[list[CandidateLoss]], int] = {}
            try:
                pool = self.pool = self.pool or self._start()
                futures = {pool.submit(_evaluate, *task): index for index, task in left.items()}
                for future in as_completed(futures):
                    answers = future.result()
                    deaths = 0
                    yield futures[future], answers
                    del left[futures[future]]
            except BrokenProcessPool:
                self.close()
                deaths += 1
                if deaths > RETRIES:
                    raise LongRopeError(
                        f"workers: one died {deaths} times in a row; if memory ran out, use fewer --workers, "
                        "a shorter length or dtype bfloat16; go on with --resume"
                    ) from None
            finally:
                for future in futures:
                    future.cancel()

    def close(self) -> None:
        """End the processes."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
        self.pool = None

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        begun = context.Value("i", 0)
        return ProcessPoolExecutor(self.count, context, initializer=_begin, initargs=(self.build, begun))


_begun: Callable[[], Worker] | None = None


def _begin(build: Callable[[int], MakeObjective], begun: Any) -> None:
    """In a new local process; the model is loaded by the first task, so that a refusal to load is its answer."""
    global _begun
    with begun.get_lock():
        rank, begun.value = begun.value, begun.value + 1
    _begun = cache(partial(Worker, build, rank))


def _evaluate(key: str, items: bytes, batch: Batch, gradient: bool) -> list[CandidateLoss]:
    assert _begun is not None
    return _begun().evaluate(key, items, batch, gradient)
