"""Tables of cos and sin, made in float64 and looked up by position."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from longrope.errors import LongRopeError

BLOCK = 2**12  # two tables of this size reach position 2^24


def make_table(positions: np.ndarray, inv_freq: np.ndarray, attention: np.ndarray) -> Tensor:
    """Return cos and sin of every set of frequencies, ``(2, sets, positions, dim // 2)``.

    The values are float32 stored as int32, so that ``model.to(bfloat16)`` does not round them.

    Args:
        positions: Positions in tokens, ``(positions,)``.
        inv_freq: Angular frequencies in radians per token, ``(sets, dim // 2)``.
        attention: Attention factor of each set, ``(sets,)``.
    """
    phases = positions[None, :, None] * inv_freq[:, None, :]
    table = np.stack([np.cos(phases), np.sin(phases)]) * attention[:, None, None]
    return torch.from_numpy(table).float().view(torch.int32)


def look_up(table: Tensor, sets: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin from a table of `make_table`, each ``(batch, sequence, dim // 2)``.

    Args:
        table: Table of all sets.
        sets: Index of each row's or each token's set, ``(batch or 1, sequence or 1)``.
        positions: Positions within the table, ``(batch or 1, sequence)``; a negative one raises IndexError.
    """
    cos, sin = table.view(torch.float32).to(positions.device).flatten(1, 2)
    indices = torch.where(positions >= 0, sets * table.shape[2] + positions, len(cos))
    return nn.functional.embedding(indices, cos), nn.functional.embedding(indices, sin)


def integer_positions(position_ids: Tensor) -> Tensor:
    """Return positions as int64; floats are accepted if they are whole numbers that their dtype represents exactly.

    Integers are never compared on the host, so that a CUDA device is not synchronised. A compiled graph cannot raise
    this error: a fraction becomes position -1 there, which raises IndexError at the look-up.

    Raises:
        LongRopeError: A position has a fraction, is not finite, or is too large for its dtype to be exact.
    """
    if not position_ids.is_floating_point():
        return position_ids.long()
    largest = 2 / torch.finfo(position_ids.dtype).eps  # from here on, neighbouring integers round to one number
    exact = (position_ids == position_ids.floor()) & (position_ids.abs() <= largest)
    if not torch.compiler.is_compiling() and not position_ids.is_meta and not exact.all():
        refused = position_ids[~exact][0].item()
        dtype = str(position_ids.dtype).removeprefix("torch.")
        raise LongRopeError(
            f"position_ids = {refused}: positions are whole numbers, up to {largest:.0f} in {dtype}. "
            "Pass positions as integers."
        )
    return torch.where(exact, position_ids, -1).long()
