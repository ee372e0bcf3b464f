"""The rotary embedding itself: positions in, cos and sin out, exact at any position up to 2^24."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import attention_factor, heuristic

BLOCK = 2**12  # two tables of this size reach position 2^24


class LongRoPE(nn.Module):
    """Rotary embedding with rescale factors per pair: short ones up to the original length, long ones beyond.

    A float32 product position·inv_freq is off by 0.06 rad at 2M tokens. Here a position p = BLOCK·a + b is looked up
    in two tables made in float64, and cos(A + B), sin(A + B) come from the angle-sum identities, in float32
    without any large number: right to 1e-6 at 2^21, with no trigonometric function in the forward pass.

    Args:
        dim: rotated dimensions per head.
        max_position: L, the longest sequence in tokens; s = max_position / original_max_position.
        original_max_position: L0.
        base: ``rope_theta``.
        search_factors: factors beyond L0, ``(dim // 2,)``; the heuristic's if not given.
        short_factors: factors up to L0, ``(dim // 2,)``; ones if not given.
        mscale: multiplies the attention factor 0.1·ln s + 1, which this constructor uses for both sets.

    Raises:
        LongRopeError: if a number is out of range or the factors do not fit ``dim``.

    >>> cos, sin = LongRoPE(dim=64, max_position=2048, original_max_position=256)(torch.zeros(1, 300, 8))
    >>> cos.shape
    torch.Size([1, 300, 64])
    """

    coarse: Tensor
    fine: Tensor
    first_rescaled: Tensor

    def __init__(
        self,
        dim: int,
        max_position: int = 2097152,
        original_max_position: int = 4096,
        base: float = 10000.0,
        search_factors: Sequence[float] | None = None,
        short_factors: Sequence[float] | None = None,
        mscale: float = 1.0,
    ) -> None:
        super().__init__()
        rope = Rope(dim=dim, base=base, original_length=original_max_position)
        attention = attention_factor("yarn", rope, max_position) * mscale
        long = heuristic(rope, max_position).factors if search_factors is None else search_factors
        short = [1.0] * (dim // 2) if short_factors is None else short_factors
        scalings = [Scaling(factors, attention_factor=attention, length=max_position) for factors in (short, long)]
        self._build(rope, scalings, by_length=True)

    @classmethod
    def of(cls, extension: Extension) -> LongRoPE:
        """The module of an extension: its short factors up to L0, its long ones beyond, each with its attention."""
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        long = replace(extension.long, length=extension.length)
        module._build(extension.rope, [extension.short, long], by_length=True)
        return module

    @classmethod
    def static(cls, rope: Rope, scalings: Sequence[Scaling], *, reach: int = BLOCK**2) -> LongRoPE:
        """The module of one scaling at every length, or of one scaling for each row of a batch.

        Args:
            rope: the model's geometry.
            scalings: one for all rows, or as many as the batch has rows.
            reach: positions that it is made for; for few of them, it is made sooner.
        """
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module._build(rope, scalings, by_length=False, reach=reach)
        return module

    def _build(self, rope: Rope, scalings: Sequence[Scaling], *, by_length: bool, reach: int = BLOCK**2) -> None:
        if not scalings:
            raise LongRopeError("scalings is empty; give one, or one for each row of the batch")
        longest = max(scaling.length or 0 for scaling in scalings)
        if longest > BLOCK**2:
            raise LongRopeError(
                f"length = {longest}: the tables of cos and sin end at {BLOCK**2} (16m) tokens; ask for less"
            )
        self.rope, self.scalings, self.by_length, self.sets = rope, tuple(scalings), by_length, len(scalings)
        self.reach = reach
        self.any_start_tokens = any(scaling.start_tokens for scaling in scalings)
        first = torch.tensor([scaling.start_tokens for scaling in scalings])
        self.register_buffer("first_rescaled", first, persistent=False)
        inv_freq = np.stack([scaling.inv_freq(rope) for scaling in scalings])
        attention = np.array([scaling.attention_factor for scaling in scalings])
        if self.any_start_tokens:  # as many sets again, with the original rotation
            inv_freq = np.concatenate([inv_freq, np.broadcast_to(rope.inv_freq, inv_freq.shape)])
            attention = np.tile(attention, 2)
        fine, coarse = np.arange(min(BLOCK, reach)), BLOCK * np.arange(-(-reach // BLOCK))
        self.register_buffer("coarse", _table(coarse, inv_freq, attention), persistent=False)
        self.register_buffer("fine", _table(fine, inv_freq, np.ones_like(attention)), persistent=False)

    def forward(
        self, x: Tensor, position_ids: Tensor | None = None, seq_len: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cos and sin, each ``(batch, sequence, dim)`` in the dtype and on the device of ``x``.

        Args:
            x: any tensor ``(batch, sequence, …)``; only its shape, dtype and device are used.
            position_ids: ``(batch or 1, sequence)`` whole numbers; 0, 1, 2 … if not given.
            seq_len: the length in tokens that decides between short (≤ L0) and long factors; if not given, each
                row's largest position + 1.

        Raises:
            IndexError: if a position is negative, or where the tables end (2^24, or ``reach``; on CUDA, a device
                assert).
            LongRopeError: if there are factors for another number of rows.
        """
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
            seq_len = x.shape[1] if seq_len is None else seq_len
        if not self.by_length and self.sets > 1 and x.shape[0] != self.sets:
            raise LongRopeError(f"a batch of {x.shape[0]} rows where there are factors for {self.sets}; give one each")
        chosen = self._choose(position_ids, seq_len)
        if self.any_start_tokens:
            rescaled = position_ids >= self.first_rescaled.to(x.device)[chosen]
            chosen = torch.where(rescaled, chosen, chosen + self.sets)
        position_ids = torch.where(position_ids < self.reach, position_ids, -1)  # the tables are of whole blocks
        cos_a, sin_a = _look_up(self.coarse, chosen, position_ids // BLOCK)
        cos_b, sin_b = _look_up(self.fine, chosen, position_ids % BLOCK)
        cos = torch.addcmul(cos_a * cos_b, sin_a, sin_b, value=-1).to(x.dtype)
        sin = torch.addcmul(sin_a * cos_b, cos_a, sin_b).to(x.dtype)
        return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)

    def _choose(self, position_ids: Tensor, seq_len: int | None) -> Tensor:
        """The set that each row uses, ``(batch or 1, 1)``."""
        device = position_ids.device
        if not self.by_length:
            return torch.arange(self.sets, device=device)[:, None]
        if seq_len is not None:
            return torch.full((1, 1), int(seq_len > self.rope.original_length), device=device)
        return (position_ids.amax(dim=-1, keepdim=True) >= self.rope.original_length).long()


def _table(positions: np.ndarray, inv_freq: np.ndarray, attention: np.ndarray) -> Tensor:
    """Cos and sin, ``(2, sets, positions, dim // 2)``.

    They are float32 kept as int32, so that ``model.to(bfloat16)`` leaves them be.
    """
    phases = positions[None, :, None] * inv_freq[:, None, :]
    table = np.stack([np.cos(phases), np.sin(phases)]) * attention[:, None, None]
    return torch.from_numpy(table).float().view(torch.int32)


def _look_up(table: Tensor, chosen: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cos and sin of the chosen sets at positions below the table's, each ``(batch, sequence, dim // 2)``."""
    cos, sin = table.view(torch.float32).to(positions.device).flatten(1, 2)
    rows = torch.where(positions >= 0, chosen * table.shape[2] + positions, len(cos))
    return nn.functional.embedding(rows, cos), nn.functional.embedding(rows, sin)
