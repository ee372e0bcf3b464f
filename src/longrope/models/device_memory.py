"""What memory a device has; out of memory, said in the user's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from longrope.errors import LongRopeError

SIGNS = ("out of memory", "not enough memory", "can't allocate memory")


@contextmanager
def explain_out_of_memory(length: int, where: str, remedy: str) -> Iterator[None]:
    """Turn running out of memory inside the block into a LongRopeError that names the length and what to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and not any(sign in str(error).lower() for sign in SIGNS):
            raise
        raise LongRopeError(f"out of memory at length {length} {where}; {remedy}") from error


def device_memory(device: str) -> int | None:
    """Bytes that a device has in all; None if it does not tell."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total if device == "cpu" else None


def free_memory(device: str) -> int | None:
    """Bytes that a device can still give; None if it does not tell."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] if torch.cuda.is_available() else None
    return psutil.virtual_memory().available if device == "cpu" else None
