"""Evaluate on a Ray cluster: the engine beyond one machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from longrope.errors import LongRopeError
from longrope.objectives.local_workers import RETRIES, MakeObjective, Task, Worker
from longrope.search.protocol import CandidateLoss


class RayPool:
    """Ray actors, one a GPU, or one a CPU where there is no GPU.

    Args:
        build: as for `Worker`.
        address: ``ray`` for the cluster of this machine (one is started if there is none), or ``ray://HOST:PORT``.

    Raises:
        LongRopeError: if Ray is not installed or not reachable.
    """

    def __init__(self, build: Callable[[int], MakeObjective], address: str) -> None:
        try:
            import ray
        except ImportError:
            raise LongRopeError(f"workers = {address!r} needs Ray: pip install 'longrope[ray]'") from None
        try:
            ray.init(address=None if address == "ray" else address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise LongRopeError(
                f"workers = {address!r}: no Ray cluster can be reached there ({reason}); start one with "
                "ray start --head, set RAY_AUTH_MODE=token if it asks for a token, or use --workers 1"
            ) from None
        self.ray, resources = ray, ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        count = gpus or max(1, int(resources.get("CPU", 1)))
        actor = ray.remote(Worker).options(
            num_cpus=0 if gpus else 1, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=RETRIES
        )
        self.actors: list[Any] = [actor.remote(build, 0 if gpus else rank) for rank in range(count)]

    def share(self, items: bytes) -> Any:
        """A reference into Ray's object store."""
        return self.ray.put(items)

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """As `Engine.run`; Ray restarts an actor that dies and gives it its task again."""
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
                raise LongRopeError(f"workers: a Ray worker died and did not come back: {reason}") from None

    def close(self) -> None:
        """Let the actors go and leave the cluster."""
        self.ray.shutdown()
