"""Time a computation on a device, on a sequence that is long enough for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

SHORTEST = 256  # tokens
LONGEST = {"cpu": 16384, "cuda": 16384}
LONGEST_ELSEWHERE = 2048  # where attention keeps all scores, as on mps
ENOUGH = 0.3  # seconds: a sequence that takes this long is not made longer
SLOW = 5.0  # seconds: a step that takes this long is timed once


def time_long_enough(
    step_at: Callable[[int], Callable[[], object]], device: str, *, enough: float = 1.0, longest: int | None = None
) -> tuple[int, float]:
    """Return a length at which a step takes long enough to be timed, and its seconds.

    They are the median of three runs, or those of one run if the step is slow.

    Args:
        step_at: Function of a length in tokens that returns the step.
        device: A torch device.
        enough: Multiple of `ENOUGH` that a step takes at least, if the longest sequence takes that long.
        longest: Most tokens; None for as many as the device takes.
    """
    length, longest = SHORTEST, longest or LONGEST.get(device.partition(":")[0], LONGEST_ELSEWHERE)
    while True:
        step = step_at(length)
        _seconds_of(step, device)  # a rehearsal
        first = _seconds_of(step, device)
        if first >= enough * ENOUGH or length >= longest:
            more = 2 if first < SLOW else 0
            return length, median([first, *(_seconds_of(step, device) for _ in range(more))])
        length *= 2


def _seconds_of(step: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    step()
    if device != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - started
