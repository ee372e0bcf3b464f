"""Does a length fit into memory? Asked before hours of work."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import PreTrainedConfig

from longrope.errors import LongRopeError
from longrope.evaluation.anatomy import Anatomy
from longrope.lengths import short_length
from longrope.models.memory import free_memory


def check_room(config: PreTrainedConfig, length: int, *, batch: int, dtype: torch.dtype, device: str) -> None:
    """Refuse forward passes that cannot fit, once the weights are loaded.

    Args:
        config: of the model.
        length: in tokens.
        batch: rows of a pass.
        dtype: of the weights.
        device: where they are.

    Raises:
        LongRopeError: if the device has less free memory than a pass takes; says what fits.
    """
    free = free_memory(device)
    if free is None:
        return
    anatomy = replace(Anatomy.of(config), dtype=str(dtype).removeprefix("torch."))
    needed = anatomy.passing(length * batch)
    if needed > free:
        fits = length * batch
        while fits > 1 and anatomy.passing(fits) > free:
            fits //= 2
        rows = "" if batch == 1 else f" with batch = {batch}"
        raise LongRopeError(
            f"length = {length}{rows} takes about {needed / 2**30:.1f} GiB beside the weights where {device} has "
            f"{free / 2**30:.1f} GiB free; about {short_length(fits)} tokens in a pass fit: lower the length or the "
            "batch, use dtype bfloat16, or another device"
        )
