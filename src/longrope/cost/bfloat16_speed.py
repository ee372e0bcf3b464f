"""The speed of bfloat16 on this CPU or GPU, which may have no instructions for it."""

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


def is_bfloat16_slow(device: str) -> bool:
    """Return whether a CPU is clearly faster in float32, or a CUDA device has no bfloat16."""
    if device == "cpu":
        return bfloat16_slowdown() > SLOW
    return lacks_bfloat16(device)


def lacks_bfloat16(device: str) -> bool:
    """Return whether a CUDA device has no instructions for bfloat16, so that no fused attention takes it (T4, V100)."""
    import torch

    if not device.startswith("cuda") or not torch.cuda.is_available():
        return False
    with torch.cuda.device(device):
        return not torch.cuda.is_bf16_supported(including_emulation=False)
