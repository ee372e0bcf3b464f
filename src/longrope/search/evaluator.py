"""Answer a method's asks from the journal and the objective, within a budget; keep the account and the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Protocol

from longrope.errors import LongRopeError
from longrope.rope import Scaling
from longrope.search.journal import Journal
from longrope.search.objective import BACKWARD, Answer, Ask, Batch, Objective, Pair, mean
from longrope.search.racing import clearly_worse


class Limits(Protocol):
    """What ends a search (see `Budget`)."""

    @property
    def tokens(self) -> int | None: ...  # noqa: D102
    @property
    def seconds(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True)
class Record:
    """A candidate that was the best so far when ``tokens`` token-evaluations were spent."""

    tokens: int
    loss: float
    scaling: Scaling


class Stop(Exception):  # noqa: N818
    """Ends a search for the reason in its message."""


class Evaluator:
    """Everything that a search has evaluated, and what it cost.

    Args:
        objective: evaluates what the journal does not hold.
        journal: of the search.
        limits: raise `Stop` when they are reached.
        rows: pairs in one batch.
        racing: drop candidates that are clearly worse than the best after some of the items.
        told: called after every batch.
    """

    def __init__(
        self,
        objective: Objective,
        journal: Journal,
        *,
        limits: Limits,
        rows: int = 1,
        racing: bool = False,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self.objective, self.journal, self.limits = objective, journal, limits
        self.rows, self.racing, self.told = rows, racing, told
        self.tokens, self.seconds = 0, 0.0
        self.answered: dict[Scaling, dict[int, Answer]] = {}  # by item
        self.complete: dict[Scaling, Answer] = {}  # the mean, of those that know all items
        self.lost: dict[Scaling, Answer] = {}  # an estimate, of those that lost a race
        self.records: list[Record] = []
        self.leading: tuple[float, Scaling] | None = None

    def answers(self, ask: Ask) -> list[Answer]:
        """One answer a candidate; of those that lost a race, an estimate."""
        items = range(len(self.objective.tokens))
        wanted = [one for one in dict.fromkeys(ask.candidates) if not self._is_known(one, gradient=ask.gradient)]
        if ask.gradient:
            for one in wanted:
                self.answered.pop(one, None)
        if self.racing and self.records and not ask.gradient:
            self._race(wanted, items)
        else:
            self._evaluate([(one, item) for one in wanted for item in items], gradient=ask.gradient)
        if ask.gradient:
            return [self._mean(one) for one in ask.candidates]
        return [self.complete.get(one) or self.lost[one] for one in ask.candidates]

    def _is_known(self, one: Scaling, *, gradient: bool) -> bool:
        if gradient:
            return one in self.complete and self._mean(one).gradient is not None
        return one in self.complete or one in self.lost

    def _race(self, alive: Sequence[Scaling], items: Sequence[int]) -> None:
        """The items in turn; who is clearly worse than the best so far is left behind."""
        for item in items:
            self._evaluate([(one, item) for one in alive], gradient=False)
            for one in [one for one in alive if one not in self.complete]:
                against = self.answered[self.records[-1].scaling]
                differences = [answer.loss - against[i].loss for i, answer in sorted(self.answered[one].items())]
                if clearly_worse(differences):
                    self.lost[one] = Answer(self.records[-1].loss + sum(differences) / len(differences))
            alive = [one for one in alive if one not in self.lost]

    def _evaluate(self, pairs: Sequence[Pair], *, gradient: bool) -> None:
        """All pairs, or as many batches as the budget allows, and then `Stop`."""
        batches, price = list(self._batches(pairs, 1 if gradient else self.rows)), BACKWARD if gradient else 1
        costs = [price * sum(self.objective.tokens[item] for _, item in batch) for batch in batches]
        room = math.inf if self.limits.tokens is None else self.limits.tokens - self.tokens
        affordable = sum(total <= room for total in accumulate(costs))
        if affordable < len(batches) and not self.complete:
            if sum(map(len, batches[:affordable])) < len(self.objective.tokens):
                step = price * sum(self.objective.tokens)
                raise LongRopeError(
                    f"budget = {self.limits.tokens} token-evaluations is less than one step of this search, {step}; "
                    "raise it, or use fewer or shorter documents"
                )
        try:
            for index, answers, seconds in self._known_or_new(batches[:affordable], gradient=gradient):
                self._take(batches[index], answers, costs[index], seconds)
        finally:
            self._record(dict.fromkeys(one for one, _ in pairs))
        if affordable < len(batches):
            raise Stop(f"the budget of {self.limits.tokens:,} token-evaluations is spent")

    def _batches(self, pairs: Sequence[Pair], rows: int) -> Iterator[Batch]:
        """Pairs of items of one length, in order, up to ``rows`` together."""
        for _, same in groupby(pairs, key=lambda pair: self.objective.tokens[pair[1]]):
            together = list(same)
            yield from (together[start : start + rows] for start in range(0, len(together), rows))

    def _known_or_new(
        self, batches: Sequence[Batch], *, gradient: bool
    ) -> Iterator[tuple[int, Sequence[Answer], Sequence[float]]]:
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

    def _take(self, batch: Batch, answers: Sequence[Answer], cost: int, seconds: Sequence[float]) -> None:
        self.tokens += cost
        for (one, item), answer, second in zip(batch, answers, seconds, strict=True):
            self.seconds += second
            found = self.answered.setdefault(one, {})
            found[item] = answer
            if len(found) == len(self.objective.tokens) and one not in self.complete:
                self.complete[one] = self._mean(one)
                if self.complete[one].loss < (self.leading[0] if self.leading else math.inf):
                    self.leading = (self.complete[one].loss, one)
        self.told()
        if self.limits.seconds is not None and self.seconds >= self.limits.seconds:
            raise Stop(f"the time budget of {self.limits.seconds:g} s is spent")

    def _mean(self, one: Scaling) -> Answer:
        return mean([answer for _, answer in sorted(self.answered[one].items())])

    def _record(self, candidates: Iterable[Scaling]) -> None:
        """In the order of the ask, so that nothing depends on who answered first."""
        for one in candidates:
            loss = self.complete[one].loss if one in self.complete else math.inf
            if loss < (self.records[-1].loss if self.records else math.inf):
                self.records.append(Record(self.tokens, loss, one))
