"""The messages between a search method and the objective that it minimises."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from longrope.checks import to_python
from longrope.errors import LongRopeError
from longrope.scaling import Scaling

BACKWARD_COST = 3  # a forward and backward pass counts as three forward passes

Pair = tuple[Scaling, int]  # a candidate and the index of a sample
Batch = Sequence[Pair]


@dataclass(frozen=True)
class CandidateLoss:
    """The loss of a candidate in nats, and its gradient if the method asked for one.

    ``gradient`` is ``(dim // 2 + 1,)``: by the log of each factor, then by the log of the attention factor. Numbers
    that are not finite become infinity, the worst loss.
    """

    loss: float
    gradient: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", _finite_or_worst(self.loss))
        if self.gradient is not None:
            object.__setattr__(self, "gradient", tuple(map(_finite_or_worst, self.gradient)))


@dataclass(frozen=True)
class CandidateBatch:
    """A batch of candidates to evaluate.

    Args:
        candidates: Candidates, in the order in which the method expects their losses.
        state: State of the method as JSON values. The journal keeps it, and a resumed search compares it.
        gradient_step: None asks for the mean loss over all samples. The number n asks for the loss and the gradient
            on one sample, the n-th of a fixed order; with frozen contexts on a quarter of the samples.
        reference: Candidate in whose frozen contexts the others may be evaluated, where the objective has them: on some
            tokens of each sample, given the keys and values of the reference for all others. The reference itself is
            evaluated on all tokens, and its contexts are kept. None asks for full passes.
        counts: Whether patience is tried if no candidate is better; not while a method still ranks its starts.
    """

    candidates: Sequence[Scaling]
    state: Mapping[str, Any] = field(default_factory=dict)
    gradient_step: int | None = None
    reference: Scaling | None = None
    counts: bool = True


Proposals = Generator[CandidateBatch, list[CandidateLoss], None]


class Objective(Protocol):
    """The mean loss over some samples: documents, or texts with needles."""

    @property
    def tokens(self) -> Sequence[int]:
        """Length of each sample in tokens: the cost of one forward pass over it, in token-evaluations."""
        ...

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """Yield the index of each batch of (candidate, sample) pairs and its losses, in any order.

        The samples of a batch have equal lengths. Losses depend on their own batch only.
        """
        ...


@runtime_checkable
class ContextObjective(Objective, Protocol):
    """An objective with frozen contexts."""

    @property
    def context_tokens(self) -> Sequence[int]:
        """Cost of one forward pass over each sample in a frozen context; empty where this model has none."""
        ...

    def evaluate_in_context(
        self, batches: Sequence[Batch], *, gradient: bool, reference: Scaling
    ) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """Yield the index of each batch and its losses on some tokens of the samples.

        Args:
            batches: Batches of pairs.
            gradient: Whether the losses need their gradients.
            reference: Candidate of the frozen contexts. Without a gradient, the reference itself gets a full pass, and
                its contexts are kept.
        """
        ...

    def release_contexts(self) -> None:
        """Free the memory of the contexts that are kept."""
        ...


def context_tokens(objective: Objective) -> Sequence[int]:
    """Return the cost of one forward pass over each sample in a frozen context; empty if the objective has none."""
    return objective.context_tokens if isinstance(objective, ContextObjective) else ()


def release_contexts(objective: Objective) -> None:
    """Free the memory of the frozen contexts that an objective keeps, if it has any."""
    if isinstance(objective, ContextObjective):
        objective.release_contexts()


@dataclass(frozen=True)
class FunctionObjective:
    """An objective made of a plain function, with one sample of one token.

    Args:
        loss: Function from a candidate to its loss.
        gradient: Function from a candidate to its gradient, as in `CandidateLoss`; None if there is none.
        tokens: Cost of one call in token-evaluations.
    """

    loss: Callable[[Scaling], float]
    gradient: Callable[[Scaling], Sequence[float]] | None = None
    tokens: Sequence[int] = (1,)

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """Yield the losses of each batch, by one call for each candidate."""
        for index, batch in enumerate(batches):
            yield index, [self._evaluate(candidate, gradient=gradient) for candidate, _ in batch]

    def _evaluate(self, candidate: Scaling, *, gradient: bool) -> CandidateLoss:
        if not gradient or self.gradient is None:
            return CandidateLoss(self.loss(candidate))
        slopes, factors = tuple(to_python(self.gradient(candidate))), len(candidate.factors)
        if len(slopes) != factors + 1:
            raise LongRopeError(
                f"gradient: {len(slopes)} numbers for {factors} factors. Return the derivative by the log of each "
                "factor, and then that by the log of the attention factor."
            )
        return CandidateLoss(self.loss(candidate), slopes)


def _finite_or_worst(value: float) -> float:
    return float(value) if math.isfinite(value) else math.inf
