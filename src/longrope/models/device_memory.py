"""Device memory: total, free, and errors that name the remedy when it runs out."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from longrope.errors import LongRopeError

MOST = 0.8  # of the free memory, for weights; the rest is for a pass
MAIN_MEMORY = ("cpu", "mps")  # devices that compute in it
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "status_alloc_failed")


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


def release_memory() -> None:
    """Return the memory of objects that nothing refers to, such as a model, to the system and to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def device_memory(device: str) -> int | None:
    """Return a device's total memory in bytes; None if the device does not report it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total if device.startswith(MAIN_MEMORY) else None


def free_memory(device: str) -> int | None:
    """Return a device's free memory in bytes, with what torch holds of it unused; None if it does not report it."""
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            return None
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available if device.startswith(MAIN_MEMORY) else None


def device_with_room(device: str, needed: int) -> str:
    """Return a device, or ``cpu`` if a model of ``needed`` bytes would leave too little of the device's free memory."""
    free = free_memory(device)
    return device if free is None or needed <= MOST * free else "cpu"
