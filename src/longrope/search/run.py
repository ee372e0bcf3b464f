"""Run a search: evaluate generation after generation until it ends, stands still or has spent its budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import numpy as np

from longrope.errors import LongRopeError
from longrope.rope import Scaling
from longrope.search.evolution import Candidates
from longrope.search.journal import Journal, Objective


@dataclass(frozen=True)
class Budget:
    """When a search stops early; None is never. A resumed search counts what its journal holds.

    Args:
        evaluations: the most distinct candidates.
        seconds: the most evaluation time.
        patience: generations without a better candidate.

    Raises:
        LongRopeError: if one of them allows nothing.
    """

    evaluations: int | None = None
    seconds: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 < value < math.inf:
                raise LongRopeError(f"budget {name} = {value} allows nothing; use a number above 0")


@dataclass(frozen=True)
class Progress:
    """Where a search stands; ``seconds`` is evaluation time, that before a resume included."""

    generation: int
    evaluations: int
    best: Scaling
    loss: float
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """How a search ended: why it stopped, and every candidate with its loss, best first."""

    stopped: str
    ranked: tuple[tuple[float, Scaling], ...]
    seconds: float

    @property
    def best(self) -> Scaling:
        """The candidate with the lowest loss."""
        return self.ranked[0][1]


class _Stop(Exception):  # noqa: N818
    """Ends a search for the reason in its message."""


def search(
    objective: Objective,
    candidates: Candidates,
    rng: np.random.Generator,
    journal: Journal,
    *,
    budget: Budget | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Minimise an objective over the candidates of a method.

    Args:
        objective: from a `Scaling` to a loss; one that is not finite counts as the worst.
        candidates: a method's generator.
        rng: the generator's random numbers, so that their state can be written.
        journal: holds what was evaluated before, takes what is evaluated now.
        budget: when to stop early.
        watch: called after every distinct candidate once there is a finite loss.

    Raises:
        LongRopeError: if no candidate has a finite loss.
    """
    budget = budget or Budget()
    seen: dict[Scaling, float] = {}
    spent, best, improved, stopped = 0.0, (math.inf, None), 0, "all generations are done"

    def loss_of(scaling: Scaling, number: int) -> float:
        nonlocal spent, best, improved
        if scaling in seen:
            return seen[scaling]
        if budget.evaluations is not None and len(seen) >= budget.evaluations:
            raise _Stop(f"the budget of {budget.evaluations} evaluations is spent")
        if budget.seconds is not None and spent >= budget.seconds:
            raise _Stop(f"the time budget of {budget.seconds:g} s is spent")
        seen[scaling], took = journal.evaluate(scaling, objective)
        spent += took
        if seen[scaling] < best[0]:
            best, improved = (seen[scaling], scaling), number
        if watch is not None and best[1] is not None:
            watch(Progress(number, len(seen), best[1], best[0], spent))
        return seen[scaling]

    try:
        generation = next(candidates)
        for number in count():
            losses = [loss_of(scaling, number) for scaling in generation]
            journal.generation(number, rng.bit_generator.state)
            if budget.patience is not None and number - improved >= budget.patience:
                raise _Stop(f"no better candidate in {budget.patience} generations")
            generation = candidates.send(losses)
    except StopIteration:
        pass
    except _Stop as stop:
        stopped = str(stop)
    if best[1] is None:
        raise LongRopeError("no candidate has a finite loss; check the model's dtype (try float32) and the data")
    ranked = sorted(((loss, scaling) for scaling, loss in seen.items()), key=lambda one: one[0])
    return Outcome(stopped, tuple(ranked), spent)
