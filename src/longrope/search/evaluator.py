"""Answer a method's asks from the journal and the objective, within a budget; keep the account and the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
        self.answered: dict[tuple[Scaling, bool], dict[int, Answer]] = {}
        self.complete: dict[Scaling, Answer] = {}
        self.records: list[Record] = []
        self.leading: tuple[float, Scaling] | None = None

    def answers(self, ask: Ask) -> list[Answer]:
        """One answer a candidate; of those that lost a race, an estimate."""
        items = range(len(self.objective.tokens))
        alive = [one for one in dict.fromkeys(ask.candidates) if not self._is_complete(one, ask.gradient)]
        race = self.racing and not ask.gradient and bool(self.records)
        for turn in [[item] for item in items] if race else [items]:
            pairs = [(one, item) for one in alive for item in turn]
            try:
                self._evaluate(pairs, gradient=ask.gradient)
            finally:
                self._settle(alive, gradient=ask.gradient)
            alive = [one for one in alive if not (race and self._is_lost(one))]
        return [self._answer(one, gradient=ask.gradient) for one in ask.candidates]

    def _evaluate(self, pairs: Sequence[Pair], *, gradient: bool) -> None:
        batches, price = list(self._batches(pairs, 1 if gradient else self.rows)), BACKWARD if gradient else 1
        costs = [price * sum(self.objective.tokens[item] for _, item in batch) for batch in batches]
        room, affordable = math.inf if self.limits.tokens is None else self.limits.tokens - self.tokens, 0
        while affordable < len(batches) and sum(costs[: affordable + 1]) <= room:
            affordable += 1
        known = [[self.journal.get(pair, gradient=gradient) for pair in batch] for batch in batches[:affordable]]
        todo = []
        for index, found in enumerate(known):
            whole = [one for one in found if one is not None]
            if len(whole) < len(found):
                todo.append(index)
            else:
                self._take(batches[index], [answer for answer, _ in whole], costs[index], gradient=gradient)
                self._pass_time(sum(seconds for _, seconds in whole))
        started = time.perf_counter()
        for position, answers in self.objective.evaluate([batches[index] for index in todo], gradient=gradient):
            index, took = todo[position], time.perf_counter() - started
            for pair, answer in zip(batches[index], answers, strict=True):
                self.journal.add(pair, answer, took / len(answers), gradient=gradient)
            self._take(batches[index], answers, costs[index], gradient=gradient)
            self._pass_time(took)
            started = time.perf_counter()
        if affordable < len(batches):
            if not self.complete:
                step = price * sum(self.objective.tokens)
                raise LongRopeError(
                    f"budget = {self.limits.tokens} token-evaluations is less than one step of this search, {step}; "
                    "raise it, or use fewer or shorter documents"
                )
            raise Stop(f"the budget of {self.limits.tokens:,} token-evaluations is spent")

    def _batches(self, pairs: Sequence[Pair], rows: int) -> Iterator[Batch]:
        """Pairs of items of one length, in order, up to ``rows`` together."""
        batch: list[Pair] = []
        for pair in pairs:
            same = batch and self.objective.tokens[batch[0][1]] == self.objective.tokens[pair[1]]
            if batch and (len(batch) == rows or not same):
                yield batch
                batch = []
            batch.append(pair)
        if batch:
            yield batch

    def _take(self, batch: Batch, answers: Sequence[Answer], cost: int, *, gradient: bool) -> None:
        self.tokens += cost
        for (one, item), answer in zip(batch, answers, strict=True):
            self.answered.setdefault((one, gradient), {})[item] = answer
            found = self._whole(one, gradient=gradient)
            if found and math.isfinite(found.loss) and (self.leading is None or found.loss < self.leading[0]):
                self.leading = (found.loss, one)
        self.told()

    def _pass_time(self, seconds: float) -> None:
        self.seconds += seconds
        if self.limits.seconds is not None and self.seconds >= self.limits.seconds:
            raise Stop(f"the time budget of {self.limits.seconds:g} s is spent")

    def _settle(self, candidates: Sequence[Scaling], *, gradient: bool) -> None:
        """Enter what is now complete, in the order of the ask, so that nothing depends on who answered first."""
        for one in candidates:
            found = self._whole(one, gradient=gradient)
            if found is None or one in self.complete:
                continue
            self.complete[one] = found
            if math.isfinite(found.loss) and (not self.records or found.loss < self.records[-1].loss):
                self.records.append(Record(self.tokens, found.loss, one))

    def _is_complete(self, one: Scaling, gradient: bool) -> bool:
        return ((one, gradient) in self.answered and self._whole(one, gradient=gradient) is not None) or (
            not gradient and one in self.complete
        )

    def _whole(self, one: Scaling, *, gradient: bool) -> Answer | None:
        found = self.answered.get((one, gradient), {})
        if len(found) < len(self.objective.tokens):
            return None
        return mean([found[item] for item in sorted(found)])

    def _is_lost(self, one: Scaling) -> bool:
        return one not in self.complete and clearly_worse(self._differences(one))

    def _differences(self, one: Scaling) -> list[float]:
        """How much worse it is than the best, on each item that it was evaluated on."""
        best = self.records[-1].scaling
        against = self.answered.get((best, False)) or self.answered[best, True]
        return [answer.loss - against[item].loss for item, answer in sorted(self.answered[one, False].items())]

    def _answer(self, one: Scaling, *, gradient: bool) -> Answer:
        whole = self._whole(one, gradient=gradient) or self.complete.get(one)
        if whole is not None:
            return whole
        differences = self._differences(one)
        return Answer(self.records[-1].loss + sum(differences) / len(differences))
