"""Answer a method's asks from the journal and the objective, within a budget; keep the account and the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from longrope.scaling import Scaling
from longrope.search.budget import Budget, Stop, too_small
from longrope.search.journal import Journal
from longrope.search.protocol import BACKWARD_COST, Batch, CandidateBatch, CandidateLoss, Objective, Pair
from longrope.search.racing import clearly_worse


@dataclass(frozen=True)
class Improvement:
    """A candidate that was the best so far when ``tokens`` token-evaluations were spent."""

    tokens: int
    loss: float
    scaling: Scaling


class Evaluator:
    """Everything that a search has evaluated, and what it cost.

    Args:
        objective: evaluates what the journal does not hold.
        journal: of the search.
        budget: what it allows; then `Stop` is raised.
        rows: pairs in one batch.
        racing: drop candidates that are clearly worse than the best after some of the items.
        told: called after every batch.
    """

    def __init__(
        self,
        objective: Objective,
        journal: Journal,
        *,
        budget: Budget,
        rows: int = 1,
        racing: bool = False,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self.objective, self.journal, self.budget = objective, journal, budget
        self.rows, self.racing, self.told = rows, racing, told
        self.tokens, self.seconds = 0, 0.0
        self.answered: dict[Scaling, dict[int, CandidateLoss]] = {}  # by item
        self.complete: dict[Scaling, float] = {}  # the mean loss of those that were evaluated on all items
        self.lost: dict[Scaling, float] = {}  # an estimate of it, of those that lost a race
        self.records: list[Improvement] = []
        self.leading: tuple[float, Scaling] | None = None

    def answers(self, ask: CandidateBatch) -> list[CandidateLoss]:
        """One answer a candidate; of those that lost a race, an estimate."""
        count, candidates = len(self.objective.tokens), dict.fromkeys(ask.candidates)
        if ask.turn is not None:
            item = ask.turn * stride(count) % count
            self._evaluate([(one, item) for one in candidates if not self._has_slope(one, item)], gradient=True)
            return [self.answered[one][item] for one in ask.candidates]
        wanted = [one for one in candidates if one not in self.complete and one not in self.lost]
        if self.racing and self.records:
            self._race(wanted, range(count))
        else:
            self._evaluate(self._missing(wanted, range(count)), gradient=False)
        return [CandidateLoss(self.complete[one] if one in self.complete else self.lost[one]) for one in ask.candidates]

    def _has_slope(self, one: Scaling, item: int) -> bool:
        answer = self.answered.get(one, {}).get(item)
        return answer is not None and answer.gradient is not None

    def _missing(self, candidates: Iterable[Scaling], items: Iterable[int]) -> list[Pair]:
        return [(one, item) for one in candidates for item in items if item not in self.answered.get(one, {})]

    def _race(self, alive: Sequence[Scaling], items: Sequence[int]) -> None:
        """The items in turn; who is clearly worse than the best so far is left behind."""
        for item in items:
            self._evaluate(self._missing(alive, [item]), gradient=False)
            for one in [one for one in alive if one not in self.complete]:
                against = self.answered[self.records[-1].scaling]
                differences = [answer.loss - against[i].loss for i, answer in sorted(self.answered[one].items())]
                if clearly_worse(differences):
                    self.lost[one] = self.records[-1].loss + sum(differences) / len(differences)
            alive = [one for one in alive if one not in self.lost]

    def _evaluate(self, pairs: Sequence[Pair], *, gradient: bool) -> None:
        """All pairs, or as many batches as the budget allows, and then `Stop`."""
        batches, price = list(self._batches(pairs, 1 if gradient else self.rows)), BACKWARD_COST if gradient else 1
        costs = [price * sum(self.objective.tokens[item] for _, item in batch) for batch in batches]
        room = math.inf if self.budget.tokens is None else self.budget.tokens - self.tokens
        affordable = sum(total <= room for total in accumulate(costs))
        finished = bool(self.complete) or sum(map(len, batches[:affordable])) >= len(self.objective.tokens)
        if self.budget.tokens is not None and affordable < len(batches) and not finished:
            raise too_small(self.budget.tokens, price * sum(self.objective.tokens))
        try:
            for index, answers, seconds in self._known_or_new(batches[:affordable], gradient=gradient):
                self._take(batches[index], answers, costs[index], seconds)
        finally:
            self._record(dict.fromkeys(one for one, _ in pairs))
        if affordable < len(batches):
            raise Stop(f"the budget of {self.budget.tokens:,} token-evaluations is spent")

    def _batches(self, pairs: Sequence[Pair], rows: int) -> Iterator[Batch]:
        """Pairs of items of one length, in order, up to ``rows`` together."""
        for _, same in groupby(pairs, key=lambda pair: self.objective.tokens[pair[1]]):
            together = list(same)
            yield from (together[start : start + rows] for start in range(0, len(together), rows))

    def _known_or_new(
        self, batches: Sequence[Batch], *, gradient: bool
    ) -> Iterator[tuple[int, Sequence[CandidateLoss], Sequence[float]]]:
        """(index, answers, seconds) of each batch, from the journal if it holds all of it, else evaluated."""
        todo: list[int] = []
        for index, batch in enumerate(batches):
            found = [self.journal.get(pair, gradient=gradient) for pair in batch]
            known = [one for one in found if one is not None]
            if len(known) == len(found):
                yield index, [answer for answer, _ in known], [seconds for _, seconds in known]
            else:
                todo.append(index)
        started = time.perf_counter()
        for position, answers in self.objective.evaluate([batches[index] for index in todo], gradient=gradient):
            index, took = todo[position], time.perf_counter() - started
            seconds = [round(took / len(answers), 6)] * len(answers)
            for pair, answer, second in zip(batches[index], answers, seconds, strict=True):
                self.journal.add(pair, answer, second, gradient=gradient)
            yield index, answers, seconds
            started = time.perf_counter()

    def _take(self, batch: Batch, answers: Sequence[CandidateLoss], cost: int, seconds: Sequence[float]) -> None:
        self.tokens += cost
        for (one, item), answer, second in zip(batch, answers, seconds, strict=True):
            self.seconds += second
            found = self.answered.setdefault(one, {})
            found[item] = answer
            if len(found) == len(self.objective.tokens) and one not in self.complete:
                loss = self.complete[one] = sum(answer.loss for _, answer in sorted(found.items())) / len(found)
                if loss < (self.leading[0] if self.leading else math.inf):
                    self.leading = (loss, one)
        self.told()
        if self.budget.seconds is not None and self.seconds >= self.budget.seconds:
            raise Stop(f"the time budget of {self.budget.seconds:g} s is spent")

    def _record(self, candidates: Iterable[Scaling]) -> None:
        """In the order of the ask, so that nothing depends on who answered first."""
        for one in candidates:
            loss = self.complete.get(one, math.inf)
            if loss < (self.records[-1].loss if self.records else math.inf):
                self.records.append(Improvement(self.tokens, loss, one))


def stride(count: int) -> int:
    """The step in which turns go through all items, so that those of one length or kind, which lie together, spread.

    >>> [turn * stride(8) % 8 for turn in range(8)]
    [0, 5, 2, 7, 4, 1, 6, 3]
    """
    return next(step for step in range(max(1, round(0.618 * count)), count + 1) if math.gcd(step, count) == 1)
