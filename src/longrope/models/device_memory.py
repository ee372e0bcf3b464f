"""Device memory: total, free, and errors that name the remedy when it runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from longrope.errors import LongRopeError

OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


@contextmanager
def explain_out_of_memory(length: int, where: str, remedy: str) -> Iterator[None]:
    """Turn running out of memory inside the block into a LongRopeError that names the length and the remedy."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and not any(phrase in str(error).lower() for phrase in OUT_OF_MEMORY):
            raise
        raise LongRopeError(f"out of memory at length {length} {where}; {remedy}") from error


def device_memory(device: str) -> int | None:
    """Return a device's total memory in bytes; None if the device does not report it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total if device == "cpu" else None


def free_memory(device: str) -> int | None:
    """Return a device's free memory in bytes; None if the device does not report it."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] if torch.cuda.is_available() else None
    return psutil.virtual_memory().available if device == "cpu" else None
