"""The rotary embedding itself: positions in, cos and sin out, exact at any position up to 2^24."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from longrope.errors import LongRopeError
from longrope.models.rotary_state import RotaryState
from longrope.models.rotary_tables import BLOCK, integer_positions, look_up, make_table
from longrope.rope import Rope
from longrope.scaling import ORIGINAL, Extension, Scaling
from longrope.schemes import attention_factor, heuristic
from longrope.units import token_count

CPU = torch.device("cpu")


class LongRoPE(nn.Module):
    """Rotary embedding with rescale factors per pair: short ones up to the original length, long ones beyond.

    At 2M tokens transformers' float32 cos and sin are off by 0.15. This module splits a position p = BLOCK·a + b and
    looks up a and b in two tables made in float64. The angle-sum identities then give cos(A + B) and sin(A + B) in
    float32: right to 1e-6 at position 2^21, without a trigonometric function in the forward pass.

    ``state_dict()`` holds one entry, ``_extra_state``: geometry, factors and attention factors as JSON in bytes, which
    no cast to another dtype can round. Loading it makes the tables again.

    Args:
        dim: Rotated dimensions per head.
        max_position: L, the longest sequence in tokens, such as ``"2m"``; s = max_position / original_max_position.
        original_max_position: L0 in tokens.
        base: ``rope_theta``.
        search_factors: Factors beyond L0, ``(dim // 2,)``: a list, an array, or a tensor on any device (default: the
            heuristic's).
        short_factors: Factors up to L0, ``(dim // 2,)``, of the same types (default: ones).
        mscale: Number that multiplies the attention factor 0.1·ln s + 1, which this constructor uses for both sets.

    Raises:
        LongRopeError: A number is out of range, or the factors do not fit ``dim``.

    >>> cos, sin = LongRoPE(dim=64, max_position=2048, original_max_position=256)(torch.zeros(1, 300, 8))
    >>> cos.shape
    torch.Size([1, 300, 64])
    """

    _device_anchor: Tensor

    def __init__(
        self,
        dim: int,
        max_position: int | str = 2097152,
        original_max_position: int | str = 4096,
        base: float = 10000.0,
        search_factors: Sequence[float] | np.ndarray | Tensor | None = None,
        short_factors: Sequence[float] | np.ndarray | Tensor | None = None,
        mscale: float = 1.0,
    ) -> None:
        super().__init__()
        self.register_buffer("_device_anchor", torch.empty(0), persistent=False)
        max_position = token_count("max_position", max_position, 1)
        original_max_position = token_count("original_max_position", original_max_position)
        rope = Rope(dim=dim, base=base, original_length=original_max_position)
        attention = attention_factor("yarn", rope, max_position) * mscale
        long: Any = heuristic(rope, max_position).factors if search_factors is None else search_factors
        short: Any = [1.0] * (rope.dim // 2) if short_factors is None else short_factors
        scalings = [Scaling(factors, attention_factor=attention, length=max_position) for factors in (short, long)]
        self._build(rope, scalings, by_length=True)

    @classmethod
    def of(cls, extension: Extension) -> LongRoPE:
        """Return the module of an extension: its short factors up to L0, its long ones beyond.

        If the checkpoint has a short set of its own, that set comes first, up to its own length.
        """
        module, rope = cls._empty(), extension.rope
        long = replace(extension.long, length=extension.length)
        carried = [extension.at(rope.short_length)] if rope.has_two_sets else []
        module._build(rope, [*carried, extension.short, long], by_length=True)
        return module

    @classmethod
    def static(cls, rope: Rope, scalings: Sequence[Scaling], *, reach: int = BLOCK**2) -> LongRoPE:
        """Return the module of one scaling at every length, or of one scaling for each row of a batch.

        Args:
            rope: Geometry of the model.
            scalings: One scaling for all rows, or one for each row of the batch.
            reach: Number of positions in the tables; fewer are made sooner.
        """
        module = cls._empty()
        module._build(rope, scalings, by_length=False, reach=reach)
        return module

    @classmethod
    def _empty(cls) -> LongRoPE:
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module.register_buffer("_device_anchor", torch.empty(0), persistent=False)
        return module

    def _build(self, rope: Rope, scalings: Sequence[Scaling], *, by_length: bool, reach: int = BLOCK**2) -> None:
        if not scalings:
            raise LongRopeError("scalings = []: empty. Give one scaling, or one for each row of the batch.")
        longest = max(scaling.length or 0 for scaling in scalings)
        if longest > BLOCK**2:
            raise LongRopeError(
                f"length = {longest}: the tables of cos and sin end at {BLOCK**2} (16m) tokens. Use a shorter length."
            )
        self.rope, self.scalings, self.by_length, self.reach = rope, tuple(scalings), by_length, reach
        self.max_position = longest or reach
        self.any_start_tokens = any(scaling.start_tokens for scaling in scalings)
        first_rescaled = torch.from_numpy(np.array([scaling.start_tokens for scaling in scalings]))
        inv_freq = np.stack([scaling.inv_freq(rope) for scaling in scalings])
        attention = rope.attention_factor * np.array([scaling.attention_factor for scaling in scalings])
        if self.any_start_tokens:  # the sets once more, with the original rotation
            inv_freq = np.concatenate([inv_freq, np.broadcast_to(rope.inv_freq, inv_freq.shape)])
            attention = np.tile(attention, 2)
        fine, coarse = np.arange(min(BLOCK, reach)), BLOCK * np.arange(-(-reach // BLOCK))
        # not buffers: transformers' from_pretrained overwrites the buffers that a checkpoint does not hold
        host = (make_table(coarse, inv_freq, attention), make_table(fine, inv_freq, np.ones_like(attention)))
        self._tables: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {CPU: (*host, first_rescaled)}

    def forward(
        self, x: Tensor, position_ids: Tensor | None = None, seq_len: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return cos and sin, each ``(batch, sequence, dim)`` in the dtype and on the device of ``x``.

        Args:
            x: Any tensor ``(batch, sequence, …)``; only its shape, dtype and device are used.
            position_ids: Positions as whole numbers of any dtype, ``(sequence,)`` or ``(batch or 1, sequence)``
                (default: 0, 1, 2 …).
            seq_len: Length in tokens that selects short (≤ L0) or long factors (default: each row's largest
                position + 1).

        Raises:
            IndexError: A position is negative or beyond the tables (2^24, or ``reach``); on CUDA, a device assert; mps
                does not check.
            LongRopeError: ``x`` holds integers, which cannot hold cos and sin, a position is not a whole number, or the
                module has factors for another number of rows.
        """
        if not x.is_floating_point():
            dtype = str(x.dtype).removeprefix("torch.")
            raise LongRopeError(f"x.dtype = {dtype}: cos and sin would be cut to 0 and 1. Pass a tensor of floats.")
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
            seq_len = x.shape[1] if seq_len is None else seq_len
        position_ids = integer_positions(torch.atleast_2d(torch.as_tensor(position_ids))).to(x.device)
        if self.rows > 1 and x.shape[0] != self.rows:
            raise LongRopeError(
                f"x has {x.shape[0]} rows: the module has factors for {self.rows}. Give one scaling per row."
            )
        coarse, fine, first_rescaled = self._tables_on(position_ids.device)
        sets = self._select_sets(position_ids, seq_len)
        if self.any_start_tokens:
            rescaled = position_ids >= first_rescaled[sets]
            sets = torch.where(rescaled, sets, sets + len(self.scalings))
        position_ids = torch.where(position_ids < self.reach, position_ids, -1)  # the tables hold whole blocks
        cos_a, sin_a = look_up(coarse, sets, position_ids // BLOCK)
        cos_b, sin_b = look_up(fine, sets, position_ids % BLOCK)
        cos = torch.addcmul(cos_a * cos_b, sin_a, sin_b, value=-1).to(x.dtype)
        sin = torch.addcmul(sin_a * cos_b, cos_a, sin_b).to(x.dtype)
        return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tables and each set's first rescaled position, copied to a device once."""
        tables = self._tables.get(device)
        if tables is None:
            coarse, fine, first_rescaled = self._tables[CPU]
            tables = coarse.to(device), fine.to(device), first_rescaled.to(device)
            if not torch.compiler.is_compiling():
                self._tables[device] = tables
        return tables

    def _select_sets(self, position_ids: Tensor, seq_len: int | None) -> Tensor:
        """Return the index of each row's set, ``(batch or 1, 1)``."""
        device = position_ids.device
        if not self.by_length:
            return torch.arange(len(self.scalings), device=device)[:, None]
        if seq_len is not None:
            return torch.full((1, 1), sum(seq_len > border for border in self._borders), device=device)
        last = position_ids.amax(dim=-1, keepdim=True)
        return torch.stack([last >= border for border in self._borders]).sum(dim=0)

    @property
    def _borders(self) -> tuple[int, ...]:
        """Longest sequence in tokens of each set but the last."""
        return (self.rope.short_length, self.rope.original_length)[-(len(self.scalings) - 1) :]

    def rescales(self, position_ids: Tensor) -> Tensor:
        """Return whether each row of positions has factors that the model did not come with, bool ``(batch or 1,)``."""
        new = [not scaling.is_identity and scaling.scheme != ORIGINAL for scaling in self.scalings]
        rescaled = torch.tensor(new, device=position_ids.device)
        return rescaled[self._select_sets(position_ids, None)[:, 0]]

    @property
    def rows(self) -> int:
        """Rows of a batch that the module has factors for; 1 if all rows have the same."""
        return 1 if self.by_length else len(self.scalings)

    @property
    def device(self) -> torch.device:
        """The device that the module was moved to."""
        return self._device_anchor.device

    @property
    def dim(self) -> int:
        """Rotated dimensions per head."""
        return self.rope.dim

    @property
    def original_max_position(self) -> int:
        """L0 in tokens."""
        return self.rope.original_length

    @property
    def scale(self) -> float:
        """The scale s = L / L0."""
        return self.max_position / self.rope.original_length

    @property
    def inv_freq_base(self) -> Tensor:
        """Frequencies base^(-2i/dim) without factors, float32 ``(dim // 2,)``."""
        return torch.from_numpy(self.rope.inv_freq).float().to(self.device)

    @property
    def short_factors(self) -> Tensor:
        """Factors up to L0, float32 ``(dim // 2,)``; ``(rows, dim // 2)`` where each row has its own."""
        return self._factor_tensor(self.scalings[-2:-1] if self.by_length else self.scalings)

    @property
    def long_factors(self) -> Tensor:
        """Factors beyond L0, float32 ``(dim // 2,)``; ``(rows, dim // 2)`` where each row has its own."""
        return self._factor_tensor(self.scalings[-1:] if self.by_length else self.scalings)

    def _factor_tensor(self, scalings: Sequence[Scaling]) -> Tensor:
        factors = torch.from_numpy(np.array([scaling.factors for scaling in scalings])).float().to(self.device)
        return factors[0] if len(scalings) == 1 else factors

    def extra_repr(self) -> str:
        """Return geometry and attention factors for ``repr``."""
        factors = " / ".join(dict.fromkeys(f"{scaling.attention_factor:.6g}" for scaling in self.scalings))
        return (
            f"dim={self.dim}, base={self.rope.base:.10g}, original_max_position={self.original_max_position}, "
            f"max_position={self.max_position}, attention_factor={factors}"
        )

    @property
    def _state(self) -> RotaryState:
        return RotaryState(self.rope, self.scalings, self.by_length, self.max_position)

    def get_extra_state(self) -> Tensor:
        """Return geometry, factors and attention factors for ``state_dict()``."""
        return self._state.encode()

    def set_extra_state(self, state: Tensor) -> None:
        """Take the factors of another module of the same geometry and make the tables again.

        Raises:
            LongRopeError: The state belongs to a module of another geometry, or is damaged.
        """
        loaded = RotaryState.decode(state)
        loaded.check_geometry(self._state)
        if loaded != self._state:
            self._build(loaded.rope, loaded.scalings, by_length=loaded.by_length, reach=self.reach)
