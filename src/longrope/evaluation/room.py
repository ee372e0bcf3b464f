"""Does a length fit into memory? Asked before anything is loaded."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

from transformers import PreTrainedConfig

from longrope.errors import LongRopeError
from longrope.evaluation.anatomy import Anatomy
from longrope.lengths import short_length
from longrope.models.memory import free_memory


def check_room(config: PreTrainedConfig, length: int, *, batch: int, dtype: str, device: str) -> None:
    """Refuse forward passes that cannot fit.

    Args:
        config: of the model.
        length: in tokens.
        batch: rows of a pass.
        dtype: that the model will be loaded in, a key of `longrope.models.load.DTYPES`.
        device: where.

    Raises:
        LongRopeError: if the device has less free memory than weights and a pass take; says what fits.
    """
    free = free_memory(device)
    if free is None:
        return
    anatomy = Anatomy.of(config) if dtype == "auto" else replace(Anatomy.of(config), dtype=dtype)
    needed = anatomy.searching(length * batch, gradient=False)
    if needed <= free:
        return
    fits = bisect_right(range(length * batch), free, key=lambda tokens: anatomy.searching(tokens, gradient=False)) - 1
    fits = max(0, fits - fits % 1024 if fits > 1024 else fits)
    rows = "" if batch == 1 else f" with batch = {batch}"
    raise LongRopeError(
        f"length = {length}{rows} takes about {needed / 2**30:.1f} GiB with the weights where {device} has "
        f"{free / 2**30:.1f} GiB free; about {short_length(fits)} tokens in a pass fit: lower the length or the batch, "
        "use dtype bfloat16, or another device"
    )
