"""The loss of a running fine-tuning, in words."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import fmean

FIRST, LAST = 3, 10  # steps whose mean losses are compared


def training_note() -> Callable[[float], str]:
    """Return a function of a step's loss that returns the latest mean loss beside that of the first steps.

    >>> note = training_note()
    >>> note(3.0), note(2.0)
    ('loss 3.000', 'loss 2.500')
    >>> [note(1.0) for _ in range(12)][-1]
    'loss 1.000 (2.000 at first)'
    """
    first: list[float] = []
    last: deque[float] = deque(maxlen=LAST)

    def note(loss: float) -> str:
        last.append(loss)
        if len(first) < FIRST:
            first.append(loss)
        return f"loss {fmean(last):.3f}" + (f" ({fmean(first):.3f} at first)" if len(last) > FIRST else "")

    return note
