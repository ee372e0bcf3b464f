"""What a search minimises, and what a method and its objective say to each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from longrope.scaling import Scaling

BACKWARD_COST = 3  # a forward and backward pass counts as three forward passes

Pair = tuple[Scaling, int]
Batch = Sequence[Pair]


@dataclass(frozen=True)
class CandidateLoss:
    """What a candidate is worth: its loss in nats and, if asked for, the gradient of it.

    ``gradient`` is ``(dim // 2 + 1,)``: by the log of each factor, then by the log of the attention factor. Numbers
    that are not finite become infinity: the worst.
    """

    loss: float
    gradient: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", _finite_or_worst(self.loss))
        if self.gradient is not None:
            object.__setattr__(self, "gradient", tuple(map(_finite_or_worst, self.gradient)))


@dataclass(frozen=True)
class CandidateBatch:
    """Candidates that a method wants to know the worth of.

    Args:
        candidates: in the order in which the answers are wanted.
        state: of the method, JSON values; written to the journal, and compared with it when a search is resumed.
        turn: None for the mean loss over all items; a number for loss and gradient on one item: each in turn.
    """

    candidates: Sequence[Scaling]
    state: Mapping[str, Any] = field(default_factory=dict)
    turn: int | None = None


Proposals = Generator[CandidateBatch, list[CandidateLoss], None]


class Objective(Protocol):
    """The mean of a loss over some items: documents, or texts with needles."""

    @property
    def tokens(self) -> Sequence[int]:
        """The length of each item: what one forward pass over it costs, in token-evaluations."""
        ...

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """The answers to each batch of (candidate, item) pairs, with its index, as they come.

        The items of a batch have one length, and an answer depends on its own batch only.
        """
        ...


@dataclass(frozen=True)
class FunctionObjective:
    """A plain function from a `Scaling` to a loss as an objective of one item of one token."""

    loss: Callable[[Scaling], float]
    slope: Callable[[Scaling], Sequence[float]] | None = None
    tokens: Sequence[int] = (1,)

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """One call for each pair."""
        for index, batch in enumerate(batches):
            yield index, [CandidateLoss(self.loss(one), self._slope(one) if gradient else None) for one, _ in batch]

    def _slope(self, scaling: Scaling) -> tuple[float, ...]:
        assert self.slope is not None, "this function has no gradient"
        return tuple(self.slope(scaling))


def _finite_or_worst(value: float) -> float:
    return float(value) if math.isfinite(value) else math.inf
