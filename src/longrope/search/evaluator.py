"""Evaluate the batches of a method from the journal and the objective, within a budget; keep costs and the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from longrope.errors import LongRopeError
from longrope.scaling import Scaling
from longrope.search.budget import Budget, Stop, too_small
from longrope.search.journal import Journal, context_name
from longrope.search.protocol import (
    BACKWARD_COST,
    Batch,
    CandidateBatch,
    CandidateLoss,
    ContextObjective,
    Objective,
    Pair,
    context_tokens,
)
from longrope.search.racing import clearly_worse


@dataclass(frozen=True)
class Improvement:
    """A candidate that was the best so far when ``tokens`` token-evaluations were spent."""

    tokens: int
    loss: float
    scaling: Scaling


class Evaluator:
    """All evaluations of a search, and their cost.

    Args:
        objective: Objective that evaluates what the journal does not hold.
        journal: Journal of the search.
        budget: Limits of the search; beyond them `Stop` is raised.
        batch_size: Most (candidate, sample) pairs in one forward pass.
        racing: Whether to drop candidates that are clearly worse than the best after some of the samples.
        on_batch: Function called after every batch.
    """

    def __init__(
        self,
        objective: Objective,
        journal: Journal,
        *,
        budget: Budget,
        batch_size: int = 1,
        racing: bool = False,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self.objective, self.journal, self.budget = objective, journal, budget
        self.batch_size, self.racing, self.on_batch = batch_size, racing, on_batch
        self.tokens, self.seconds = 0, 0.0
        self.sample_losses: dict[Scaling, dict[int, CandidateLoss]] = {}
        self.mean_losses: dict[Scaling, float] = {}  # of candidates that were evaluated on all samples
        self.context_losses: dict[tuple[str, Scaling, bool], dict[int, CandidateLoss]] = {}  # by context and candidate
        self.race_estimates: dict[Scaling, float] = {}  # estimated mean losses of candidates that lost a race
        self.improvements: list[Improvement] = []
        self.best: tuple[float, Scaling] | None = None

    def evaluate(self, batch: CandidateBatch) -> list[CandidateLoss]:
        """Return the loss of each candidate of a batch; an estimate for those that lost a race."""
        count, candidates = len(self.objective.tokens), dict.fromkeys(batch.candidates)
        if batch.reference is not None and context_tokens(self.objective):
            return self._evaluate_in_context(batch, batch.reference)
        if batch.gradient_step is not None:
            sample = batch.gradient_step * stride(count) % count
            missing = [(candidate, sample) for candidate in candidates if not self._has_gradient(candidate, sample)]
            self._evaluate(missing, gradient=True)
            return [self.sample_losses[candidate][sample] for candidate in batch.candidates]
        known = {**self.mean_losses, **self.race_estimates}
        new = [candidate for candidate in candidates if candidate not in known]
        if self.racing and self.improvements:
            self._race(new, [step * stride(count) % count for step in range(count)])
        else:
            self._evaluate(self._missing(new, range(count)), gradient=False)
        losses = {**self.race_estimates, **self.mean_losses}
        return [CandidateLoss(losses[candidate]) for candidate in batch.candidates]

    def _evaluate_in_context(self, batch: CandidateBatch, reference: Scaling) -> list[CandidateLoss]:
        """Return the mean losses of candidates in the frozen contexts of a reference, with gradients if asked for.

        The reference itself gets a full pass, unless its gradient is asked for. Gradients are of some samples in turn.
        """
        count, gradient = len(self.objective.tokens), batch.gradient_step is not None
        samples, answers = range(count), []
        if batch.gradient_step is not None:
            share = samples_per_step(count)
            first = batch.gradient_step * share
            samples = [index * stride(count) % count for index in range(first, first + share)]
        for candidate in batch.candidates:
            if candidate == reference and not gradient:
                self._evaluate(self._missing([candidate], samples), gradient=False, reference=reference)
                answers.append(CandidateLoss(self.mean_losses[candidate]))
                continue
            by_sample = self.context_losses.setdefault((context_name(reference), candidate, gradient), {})
            missing = [(candidate, sample) for sample in samples if sample not in by_sample]
            self._evaluate(missing, gradient=gradient, reference=reference)
            answers.append(mean_loss([by_sample[sample] for sample in samples]))
        return answers

    def _has_gradient(self, candidate: Scaling, sample: int) -> bool:
        answer = self.sample_losses.get(candidate, {}).get(sample)
        return answer is not None and answer.gradient is not None

    def _missing(self, candidates: Iterable[Scaling], samples: Iterable[int]) -> list[Pair]:
        pairs = [(candidate, sample) for candidate in candidates for sample in samples]
        return [pair for pair in pairs if pair[1] not in self.sample_losses.get(pair[0], {})]

    def _race(self, candidates: Sequence[Scaling], samples: Sequence[int]) -> None:
        """Evaluate one sample after another, and drop candidates that are clearly worse than the best so far.

        The samples come in a spread order: those of one length or kind differ in the same direction, which says nothing
        about the others.
        """
        for sample in samples:
            self._evaluate(self._missing(candidates, [sample]), gradient=False)
            for candidate in [candidate for candidate in candidates if candidate not in self.mean_losses]:
                leader = self.improvements[-1]
                pairs = sorted(self.sample_losses[candidate].items())
                differences = [answer.loss - self.sample_losses[leader.scaling][i].loss for i, answer in pairs]
                if clearly_worse(differences):
                    self.race_estimates[candidate] = leader.loss + sum(differences) / len(differences)
            candidates = [candidate for candidate in candidates if candidate not in self.race_estimates]

    def _evaluate(self, pairs: Sequence[Pair], *, gradient: bool, reference: Scaling | None = None) -> None:
        """Evaluate all pairs, or the batches that the budget allows and then raise `Stop`."""
        cost = BACKWARD_COST if gradient else 1
        batches = list(self._batches(pairs, 1 if gradient or reference is not None else self.batch_size))
        frozen = reference is not None and (gradient or any(candidate != reference for candidate, _ in pairs))
        tokens = context_tokens(self.objective) if frozen else self.objective.tokens
        costs = [cost * sum(tokens[sample] for _, sample in batch) for batch in batches]
        budget_left = math.inf if self.budget.tokens is None else self.budget.tokens - self.tokens
        affordable = sum(total <= budget_left for total in accumulate(costs))
        finished = bool(self.mean_losses) or sum(map(len, batches[:affordable])) >= len(self.objective.tokens)
        if self.budget.tokens is not None and affordable < len(batches) and not finished:
            raise too_small(self.budget.tokens, cost * sum(self.objective.tokens))
        try:
            context = context_name(reference) if frozen else ""
            for index, losses, seconds in self._known_or_new(batches[:affordable], gradient, reference, context):
                if frozen:
                    for (candidate, sample), loss in zip(batches[index], losses, strict=True):
                        self.context_losses[context, candidate, gradient][sample] = loss
                self._add([] if frozen else batches[index], losses, costs[index], seconds)
        finally:
            self._record_improvements(dict.fromkeys(candidate for candidate, _ in pairs))
        if affordable < len(batches):
            raise Stop(f"the budget of {self.budget.tokens:,} token-evaluations is spent")

    def _batches(self, pairs: Sequence[Pair], batch_size: int) -> Iterator[Batch]:
        """Yield pairs in order, in batches of samples of one length."""
        for _, group in groupby(pairs, key=lambda pair: self.objective.tokens[pair[1]]):
            same_length = list(group)
            yield from (same_length[start : start + batch_size] for start in range(0, len(same_length), batch_size))

    def _known_or_new(
        self, batches: Sequence[Batch], gradient: bool, reference: Scaling | None, context: str
    ) -> Iterator[tuple[int, Sequence[CandidateLoss], Sequence[float]]]:
        """Yield (index, losses, seconds) of each batch, from the journal if it holds all of it, else evaluated."""
        todo: list[int] = []
        for index, batch in enumerate(batches):
            entries = [self.journal.get(pair, gradient=gradient, context=context) for pair in batch]
            known = [entry for entry in entries if entry is not None]
            if len(known) == len(entries):
                yield index, [loss for loss, _ in known], [seconds for _, seconds in known]
            else:
                todo.append(index)
        started = time.perf_counter()
        new = [batches[index] for index in todo]
        for position, losses in self._losses(new, gradient, reference):
            index, elapsed = todo[position], time.perf_counter() - started
            if gradient and any(loss.gradient is None for loss in losses):
                raise no_gradient()
            seconds = [round(elapsed / len(losses), 6)] * len(losses)
            for pair, loss, second in zip(batches[index], losses, seconds, strict=True):
                self.journal.add(pair, loss, second, gradient=gradient, context=context)
            yield index, losses, seconds
            started = time.perf_counter()

    def _losses(
        self, batches: Sequence[Batch], gradient: bool, reference: Scaling | None
    ) -> Iterator[tuple[int, list[CandidateLoss]]]:
        if reference is None or not isinstance(self.objective, ContextObjective):
            return self.objective.evaluate(batches, gradient=gradient)
        return self.objective.evaluate_in_context(batches, gradient=gradient, reference=reference)

    def _add(self, batch: Batch, losses: Sequence[CandidateLoss], cost: int, seconds: Sequence[float]) -> None:
        """Count the cost of a batch, and keep its losses on all tokens; none of a batch in frozen contexts."""
        self.tokens += cost
        self.seconds += sum(seconds)
        for (candidate, sample), loss in zip(batch, losses, strict=False):
            by_sample = self.sample_losses.setdefault(candidate, {})
            by_sample[sample] = loss
            if len(by_sample) == len(self.objective.tokens) and candidate not in self.mean_losses:
                mean = sum(loss.loss for _, loss in sorted(by_sample.items())) / len(by_sample)
                self.mean_losses[candidate] = mean
                if mean < (self.best[0] if self.best else math.inf):
                    self.best = (mean, candidate)
        self.on_batch()
        if self.budget.seconds is not None and self.seconds >= self.budget.seconds and self.best is not None:
            raise Stop(f"the time budget of {self.budget.seconds:g} s is spent")

    def _record_improvements(self, candidates: Iterable[Scaling]) -> None:
        """Record improvements in the order of the batch, so that they do not depend on the order of evaluation."""
        for candidate in candidates:
            loss = self.mean_losses.get(candidate, math.inf)
            if loss < (self.improvements[-1].loss if self.improvements else math.inf):
                self.improvements.append(Improvement(self.tokens, loss, candidate))


def mean_loss(losses: Sequence[CandidateLoss]) -> CandidateLoss:
    """Return the mean of losses, and of their gradients if they have any."""
    count = len(losses)
    gradients = [loss.gradient for loss in losses if loss.gradient is not None]
    gradient = tuple(sum(column) / count for column in zip(*gradients, strict=True)) if gradients else None
    return CandidateLoss(sum(loss.loss for loss in losses) / count, gradient)


def no_gradient(methods: Sequence[str] = ("cma",), reason: str | None = None) -> LongRopeError:
    """Return the error for a method that asks for gradients of an objective without any.

    Args:
        methods: Names of methods without gradients.
        reason: Why a model has none; None for another objective.
    """
    use = f"Use a method without gradients ({', '.join(methods)})"
    if reason is not None:
        return LongRopeError(f"method: {reason}, and the method asks for one. {use}.")
    return LongRopeError(
        f"objective: it has no gradient, and the method asks for one. {use}, or give the objective a gradient."
    )


def samples_per_step(count: int) -> int:
    """Return the number of samples of one gradient step in frozen contexts: a quarter of them.

    Args:
        count: Number of samples.
    """
    return max(1, count // 4)


def stride(count: int) -> int:
    """Return the step in which gradients and races go through all samples.

    Samples of one length or kind lie together, and this step spreads them.

    >>> [step * stride(8) % 8 for step in range(8)]
    [0, 5, 2, 7, 4, 1, 6, 3]

    Args:
        count: Number of samples.
    """
    return next(step for step in range(max(1, round(0.618 * count)), count + 1) if math.gcd(step, count) == 1)
