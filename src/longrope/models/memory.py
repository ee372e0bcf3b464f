"""Out of memory, said in the user's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
