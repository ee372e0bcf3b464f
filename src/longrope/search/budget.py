"""Limits that end a search before its method does."""

from __future__ import annotations

import math
from dataclasses import dataclass

from longrope.checks import to_python
from longrope.errors import LongRopeError


@dataclass(frozen=True)
class Budget:
    """Limits of a search; None sets no limit. A resumed search counts what its journal holds.

    Args:
        tokens: Most token-evaluations: 1 for every token of a forward pass, 3 with the backward pass.
        seconds: Most seconds of evaluation. The first candidate is evaluated on all samples in any case.
        patience: Most comparisons on all samples (generations) in a row without a better candidate.

    Raises:
        LongRopeError: If a limit allows nothing.
    """

    tokens: int | None = None
    seconds: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            limit = to_python(value)
            if limit is not None and not (isinstance(limit, (int, float)) and 0 < limit < math.inf):
                raise LongRopeError(f"budget {name} = {value!r} allows nothing. Use a number above 0.")

    def check_step(self, step: int) -> None:
        """Refuse a budget that is smaller than one step.

        Args:
            step: Cost of one step in token-evaluations.

        Raises:
            LongRopeError: If it is.
        """
        if self.tokens is not None and self.tokens < step:
            raise too_small(self.tokens, step)


class Stop(Exception):  # noqa: N818
    """The end of a search, for the reason in the message."""


def too_small(tokens: int, step: int) -> LongRopeError:
    """Return the error for a budget that is smaller than one step.

    Args:
        tokens: The budget in token-evaluations.
        step: Cost of one step in token-evaluations.
    """
    return LongRopeError(
        f"budget = {tokens}: one step of this search takes {step} token-evaluations. "
        "Raise it, or use fewer or shorter documents."
    )
