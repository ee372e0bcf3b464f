"""Run a search: answer what its method asks until it ends, stands still or has spent its budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from longrope.errors import LongRopeError
from longrope.scaling import Scaling
from longrope.search.budget import Budget, Stop
from longrope.search.evaluator import Evaluator, Improvement
from longrope.search.journal import Journal
from longrope.search.protocol import Objective, Proposals


@dataclass(frozen=True)
class SearchProgress:
    """Where a search stands; ``seconds`` is evaluation time, that before a resume included."""

    generation: int
    evaluations: int
    tokens: int
    best: Scaling
    loss: float
    seconds: float


@dataclass(frozen=True)
class SearchOutcome:
    """How a search ended.

    Args:
        stopped: why.
        ranked: every candidate that was evaluated on all items, with its loss, best first.
        records: every candidate that was the best when it was evaluated, in that order.
        tokens: spent token-evaluations.
        seconds: spent evaluation time.
    """

    stopped: str
    ranked: tuple[tuple[float, Scaling], ...]
    records: tuple[Improvement, ...]
    tokens: int
    seconds: float

    @property
    def best(self) -> Scaling:
        """The candidate with the lowest loss."""
        return self.ranked[0][1]


def run_search(
    objective: Objective,
    conversation: Proposals,
    journal: Journal,
    *,
    budget: Budget | None = None,
    rows: int = 1,
    racing: bool = False,
    watch: Callable[[SearchProgress], None] | None = None,
) -> SearchOutcome:
    """Minimise an objective over the candidates of a method.

    Args:
        objective: the losses; one that is not finite counts as the worst.
        conversation: a method's, not begun.
        journal: holds what was evaluated before, takes what is evaluated now.
        budget: when to stop early.
        rows: (candidate, item) pairs in one forward pass.
        racing: take the items in turn and drop candidates that are clearly worse than the best (see `racing`).
        watch: called after every evaluation once there is a finite loss.

    Raises:
        LongRopeError: if no candidate has a finite loss, or the budget is smaller than the first step.
    """
    budget, stopped, number, still = budget or Budget(), "the method is done", 0, 0

    def told() -> None:
        if watch is not None and evaluator.leading is not None:
            loss, best = evaluator.leading
            watch(SearchProgress(number, len(evaluator.complete), evaluator.tokens, best, loss, evaluator.seconds))

    evaluator = Evaluator(objective, journal, budget=budget, rows=rows, racing=racing, told=told)
    try:
        ask = next(conversation)
        for number in count():
            before = len(evaluator.records)
            answers = evaluator.answers(ask)
            journal.state(number, ask.state)
            still = 0 if len(evaluator.records) > before else still + (ask.turn is None)
            if budget.patience is not None and still >= budget.patience:
                raise Stop(f"no better candidate in {budget.patience} generations")
            ask = conversation.send(answers)
    except StopIteration:
        pass
    except Stop as stop:
        stopped = str(stop)
    if not evaluator.records:
        raise LongRopeError("no candidate has a finite loss; check the model's dtype (try float32) and the data")
    ranked = sorted(((loss, one) for one, loss in evaluator.complete.items()), key=lambda one: (one[0], one[1].factors))
    return SearchOutcome(stopped, tuple(ranked), tuple(evaluator.records), evaluator.tokens, evaluator.seconds)
