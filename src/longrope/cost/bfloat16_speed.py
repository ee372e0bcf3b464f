"""Is bfloat16 slow on this CPU? Told before hours are spent in it."""

from __future__ import annotations

import sys
import time

SLOW = 1.5  # times float32: beyond it, bfloat16 saves memory and costs time


def bfloat16_slowdown() -> float:
    """The time of a bfloat16 matrix product on the CPU over that of a float32 one, each the best of five."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        a, times = torch.ones(384, 384, dtype=dtype), []
        for _ in range(5):
            began = time.perf_counter()
            torch.mm(a, a)
            times.append(time.perf_counter() - began)
        return min(times)

    return seconds(torch.bfloat16) / seconds(torch.float32)


def warn(model: str, dtype: str, device: str, *, tuned_in: frozenset[str] = frozenset()) -> None:
    """Say, on standard error, if a model is to run in bfloat16 on a CPU that is slow at it.

    Args:
        model: its name.
        dtype: a key of `longrope.models.load.DTYPES`; ``auto`` is the checkpoint's.
        device: a torch device.
        tuned_in: dtypes of the fine-tunings of a plan.

    Raises:
        LongRopeError: if there is no such model.
    """
    from longrope.models.load import load_config

    run_in = str(load_config(model).dtype).removeprefix("torch.") if dtype == "auto" else dtype
    remedies = ["--dtype float32"] * (run_in == "bfloat16")
    remedies += ["finetune.dtype = 'float32' in the plan"] * ("bfloat16" in tuned_in)
    if device == "cpu" and remedies and (ratio := bfloat16_slowdown()) > SLOW:
        print(
            f"Note: on this CPU a product in bfloat16 takes {ratio:.1f} times as long as in float32; "
            f"{' and '.join(remedies)} would be faster, in more memory",
            file=sys.stderr,
        )
