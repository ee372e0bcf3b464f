"""Evaluation on a Ray cluster, beyond one machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from longrope.errors import LongRopeError
from longrope.objectives.local_workers import RETRIES, MakeObjective, Task, Worker
from longrope.search.protocol import CandidateLoss


class RayPool:
    """Ray actors, one for each GPU, or one for each CPU if there is no GPU.

    Args:
        build: Function as for `Worker`.
        address: ``ray`` for the cluster of this machine (one is started if there is none), or ``ray://HOST:PORT``.

    Raises:
        LongRopeError: If Ray is not installed or not reachable.
    """

    def __init__(self, build: Callable[[int], MakeObjective], address: str) -> None:
        try:
            import ray
        except ImportError:
            raise LongRopeError(
                f'workers = {address!r}: Ray is not installed. Run pip install "longrope[ray]".'
            ) from None
        try:
            ray.init(address=None if address == "ray" else address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise LongRopeError(
                f"workers = {address!r}: the Ray cluster cannot be reached ({reason}). Start one with "
                "ray start --head, set RAY_AUTH_MODE=token if it asks for a token, or use workers = 1."
            ) from None
        self.ray, resources = ray, ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        count = gpus or max(1, int(resources.get("CPU", 1)))
        actor = ray.remote(Worker).options(
            num_cpus=0 if gpus else 1, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=RETRIES
        )
        self.actors: list[Any] = [actor.remote(build, 0 if gpus else rank) for rank in range(count)]

    def share(self, samples: bytes) -> Any:
        """Return a reference into Ray's object store."""
        return self.ray.put(samples)

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """Yield the index of each task and its losses; Ray restarts an actor that dies and repeats its task."""
        waiting, free, busy = list(enumerate(tasks))[::-1], list(self.actors), {}
        while waiting or busy:
            while waiting and free:
                index, task = waiting.pop()
                actor = free.pop()
                busy[actor.evaluate.remote(*task)] = (index, actor)
            (ready,), _ = self.ray.wait(list(busy), num_returns=1)
            index, actor = busy.pop(ready)
            free.append(actor)
            try:
                yield index, self.ray.get(ready)
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, LongRopeError) else error from None
            except self.ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[0]
                raise LongRopeError(
                    f"workers: a Ray worker died and was not restarted ({reason}). "
                    "Check the cluster, and resume the run."
                ) from None

    def close(self) -> None:
        """End the actors and leave the cluster."""
        self.ray.shutdown()
