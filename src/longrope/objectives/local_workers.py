"""Evaluation on several processes on this machine; each holds the model once.

Losses depend on their own batch only, so the outcome does not depend on which worker computed them. A worker that dies
is replaced, and its batch is computed again.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Protocol

from longrope.errors import LongRopeError
from longrope.search.protocol import Batch, CandidateLoss, Objective

RETRIES = 3
MASKED = hasattr(signal, "pthread_sigmask")  # not on Windows
MakeObjective = Callable[[Any], Objective]
Task = tuple[str, Any, Batch, bool]


class Worker:
    """The state of a worker process: a model, and the objectives made on it so far.

    The first task loads the model, so that an error in loading it is the error of a task.

    Args:
        build: Function from the worker's number to the function that makes an objective of samples; loads the model.
        rank: Number of the worker.
    """

    def __init__(self, build: Callable[[int], MakeObjective], rank: int) -> None:
        self.build, self.rank, self.objectives = build, rank, {}

    @cached_property
    def make_objective(self) -> MakeObjective:
        """Function that makes an objective of samples on the model."""
        return self.build(self.rank)

    def evaluate(self, key: str, samples: bytes, batch: Batch, gradient: bool) -> list[CandidateLoss]:
        """Return the losses of one batch on pickled samples, which are unpacked the first time only."""
        if key not in self.objectives:
            self.objectives[key] = self.make_objective(pickle.loads(samples))  # bytes of our own parent
        return next(iter(self.objectives[key].evaluate([batch], gradient=gradient)))[1]


class WorkerPool(Protocol):
    """Workers that run tasks."""

    def share(self, samples: bytes) -> Any:
        """Return the value that stands for the samples in a task."""
        ...

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """Yield the index of each task and its losses, in any order."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...


class PooledObjective:
    """An objective of samples on the workers of a pool.

    Args:
        pool: Pool of workers.
        samples: Samples to compute losses of.
        tokens: Length of each sample in tokens.
    """

    def __init__(self, pool: WorkerPool, samples: Sequence[Any], tokens: Sequence[int]) -> None:
        packed = pickle.dumps(list(samples))
        self.pool, self.tokens = pool, tuple(tokens)
        self.key, self.samples = hashlib.sha256(packed).hexdigest(), pool.share(packed)

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """Yield the index of each batch and its losses, in the order in which they are ready."""
        return self.pool.run([(self.key, self.samples, batch, gradient) for batch in batches])


class LocalPool:
    """Processes on this machine.

    Args:
        build: Function as for `Worker`; must be picklable.
        count: Number of processes.
    """

    def __init__(self, build: Callable[[int], MakeObjective], count: int) -> None:
        self.build, self.count, self.pool = build, count, None

    def share(self, samples: bytes) -> bytes:
        """Return the bytes themselves."""
        return samples

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """Yield the index of each task and its losses; start dead processes again."""
        pending, deaths = dict(enumerate(tasks)), 0
        while pending:
            futures: dict[Future[list[CandidateLoss]], int] = {}
            try:
                pool = self.pool = self.pool or self._start()
                with _interrupts_held():
                    futures = {pool.submit(_evaluate, *task): index for index, task in pending.items()}
                for future in as_completed(futures):
                    losses = future.result()
                    deaths = 0
                    yield futures[future], losses
                    del pending[futures[future]]
            except BrokenProcessPool:
                self.close()
                deaths += 1
                if deaths > RETRIES:
                    raise LongRopeError(
                        f"workers: a worker died {deaths} times in a row. If memory ran out, use fewer workers, "
                        "a shorter length or dtype bfloat16, and resume the run."
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
        started = context.Value("i", 0)
        return ProcessPoolExecutor(self.count, context, initializer=_start_worker, initargs=(self.build, started))


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let Ctrl-C wait in this thread, and in a process that begins meanwhile until it is ready to end in silence."""
    if not MASKED:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: Worker | None = None


def _start_worker(build: Callable[[int], MakeObjective], started: Any) -> None:
    """Give a new local process its number, and let it end with the process that started it."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the workers too, which have nothing to say of it
    if MASKED:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with started.get_lock():
        rank = started.value
        started.value += 1
    _worker = Worker(build, rank)


def _end_with_parent() -> None:
    """End this process once its parent is killed, as the pool's own workers would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _evaluate(key: str, samples: bytes, batch: Batch, gradient: bool) -> list[CandidateLoss]:
    assert _worker is not None
    return _worker.evaluate(key, samples, batch, gradient)
