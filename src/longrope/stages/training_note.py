"""The loss of a running fine-tuning, in words."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import fmean

STEPS = 10  # of a mean loss: the losses of single steps differ by their texts


def training_note() -> Callable[[float], str]:
    """Return a function of a step's loss that returns the mean of the latest losses beside that of the first ones.

    >>> note = training_note()
    >>> note(3.0), note(2.0)
    ('loss 3.000', 'loss 2.500')
    >>> [note(1.0) for _ in range(18)][-1]
    'loss 1.000 (1.300 at first)'
    """
    first: list[float] = []
    last: deque[float] = deque(maxlen=STEPS)

    def note(loss: float) -> str:
        at_first = f" ({fmean(first):.3f} at first)" if len(first) == STEPS else ""
        last.append(loss)
        if len(first) < STEPS:
            first.append(loss)
        return f"loss {fmean(last):.3f}{at_first}"

    return note
