"""The search loop: evaluate the batches of a method until it ends, stands still or has spent its budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from longrope.errors import LongRopeError, suspect
from longrope.scaling import Scaling
from longrope.search.budget import Budget, Stop
from longrope.search.evaluator import Evaluator, Improvement
from longrope.search.journal import Journal
from longrope.search.protocol import Objective, Proposals, context_tokens


@dataclass(frozen=True)
class SearchProgress:
    """Progress of a search.

    Args:
        generation: Number of batches that the method has proposed before the current one.
        evaluations: Number of candidates evaluated on all samples.
        tokens: Token-evaluations spent.
        best: Best candidate so far.
        loss: Mean loss of the best candidate in nats.
        seconds: Seconds of evaluation, those before a resume included.
        is_over: Whether the search is over, and the winner is chosen on held-out documents.
    """

    generation: int
    evaluations: int
    tokens: int
    best: Scaling
    loss: float
    seconds: float
    is_over: bool = False


@dataclass(frozen=True)
class SearchOutcome:
    """Outcome of one search.

    Args:
        stopped: Reason why the search ended.
        ranked: Mean loss and candidate for every candidate evaluated on all samples, best first.
        improvements: Candidates that were the best when they were evaluated, in that order.
        tokens: Token-evaluations spent.
        seconds: Seconds of evaluation.
        closed_form: Name of the closed form that was best and that the search went on from; empty for other methods.
    """

    stopped: str
    ranked: tuple[tuple[float, Scaling], ...]
    improvements: tuple[Improvement, ...]
    tokens: int
    seconds: float
    closed_form: str = ""

    @property
    def best(self) -> Scaling:
        """Candidate with the lowest loss."""
        return self.ranked[0][1]


def run_search(
    objective: Objective,
    proposals: Proposals,
    journal: Journal,
    *,
    budget: Budget | None = None,
    batch_size: int = 1,
    racing: bool = False,
    on_progress: Callable[[SearchProgress], None] | None = None,
) -> SearchOutcome:
    """Minimise an objective over the candidates that a method proposes.

    Args:
        objective: Objective to minimise. A loss that is not finite counts as the worst.
        proposals: Generator returned by `Method.propose`, not started yet.
        journal: Journal with the evaluations so far; new ones are appended.
        budget: Limits of the search; None for none.
        batch_size: Most (candidate, sample) pairs in one forward pass.
        racing: Whether to evaluate one sample after another and drop candidates that are clearly worse than the best.
        on_progress: Function called after every batch once there is a finite loss.

    Raises:
        LongRopeError: If no candidate has a finite loss, the budget is smaller than the first step, or the method asks
            for gradients and the objective has none.
    """
    budget = budget or Budget()
    stopped, generation, stale, closed_form = "the method is done", 0, 0, ""

    def report() -> None:
        if on_progress is not None and evaluator.best is not None:
            loss, best = evaluator.best
            count = len(evaluator.mean_losses)
            on_progress(SearchProgress(generation, count, evaluator.tokens, best, loss, evaluator.seconds))

    evaluator = Evaluator(objective, journal, budget=budget, batch_size=batch_size, racing=racing, on_batch=report)
    try:
        batch = next(proposals)
        for generation in count():
            improvements = len(evaluator.improvements)
            closed_form = batch.state.get("closed_form", closed_form)
            spent = evaluator.tokens
            batch = journal.replayed(generation, batch)
            losses = evaluator.evaluate(batch)
            journal.state(generation, batch.state)
            full = batch.reference in (None, *batch.candidates) or not context_tokens(objective)
            is_new = batch.reference is None or evaluator.tokens > spent
            compared = batch.gradient_step is None and full and is_new
            first_of_several = batch.reference is not None and generation == 0
            if compared and not evaluator.improvements and not first_of_several:
                break  # not even one of the starts has a finite loss
            stale = 0 if len(evaluator.improvements) > improvements else stale + (compared and batch.counts)
            if budget.patience is not None and stale >= budget.patience:
                raise Stop(f"no better candidate in {budget.patience} generations")
            batch = proposals.send(losses)
    except StopIteration:
        pass
    except Stop as stop:
        stopped = str(stop)
    finally:
        evaluator.on_batch = lambda: None  # report() refers to the evaluator, and with it to the model
    if not evaluator.improvements:
        causes = f"the data. {suspect(journal.dtype)}" if journal.dtype else "the function that returns the losses."
        raise LongRopeError(f"no candidate has a finite loss: check the starts and {causes}")
    ranked = [(loss, candidate) for candidate, loss in evaluator.mean_losses.items()]
    ranked.sort(key=lambda pair: (pair[0], pair[1].factors))
    improvements = tuple(evaluator.improvements)
    return SearchOutcome(stopped, tuple(ranked), improvements, evaluator.tokens, evaluator.seconds, closed_form)
