"""What ends a search before its method does."""

from __future__ import annotations

import math
from dataclasses import dataclass

from longrope.errors import LongRopeError


@dataclass(frozen=True)
class Budget:
    """When a search stops early; None is never. A resumed search counts what its journal holds.

    Args:
        tokens: the most token-evaluations: 1 for every token of a forward pass, 3 with the backward pass.
        seconds: the most evaluation time.
        patience: comparisons of candidates on all items (generations) without a better one.

    Raises:
        LongRopeError: if one of them allows nothing.
    """

    tokens: int | None = None
    seconds: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 < value < math.inf:
                raise LongRopeError(f"budget {name} = {value} allows nothing; use a number above 0")


class Stop(Exception):  # noqa: N818
    """Ends a search for the reason in its message."""


def too_small(tokens: int, step: int) -> LongRopeError:
    """What is wrong with a budget of so many token-evaluations where one step costs more."""
    return LongRopeError(
        f"budget = {tokens} token-evaluations is less than one step of this search, {step}; "
        "raise it, or use fewer or shorter documents"
    )
