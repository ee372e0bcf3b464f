"""The speed of bfloat16 on this CPU, which may have no instructions for it."""

from __future__ import annotations

import time

SLOW = 1.5  # times float32: beyond it, bfloat16 saves memory and costs time


def bfloat16_slowdown() -> float:
    """Return the time of a bfloat16 matrix product on the CPU over that of a float32 one, each the best of five."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        matrix, times = torch.ones(384, 384, dtype=dtype), []
        for _ in range(5):
            started = time.perf_counter()
            torch.mm(matrix, matrix)
            times.append(time.perf_counter() - started)
        return min(times)

    return seconds(torch.bfloat16) / seconds(torch.float32)


def is_bfloat16_slow() -> bool:
    """Return whether float32 is clearly faster on this CPU."""
    return bfloat16_slowdown() > SLOW
