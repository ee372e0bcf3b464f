"""What a search may choose: factors on a grid, not decreasing, within bounds, and the number of start tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longrope.errors import LongRopeError
from longrope.rope import Rope, Scaling

START_TOKENS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)


@dataclass(frozen=True)
class Space:
    """Candidates 1 ≤ λ_0 ≤ λ_1 ≤ … ≤ ceiling·s for one rope and target length (LongRoPE section 3.3, table 4).

    Args:
        rope: the model's geometry.
        length: the target length in tokens.
        attention_factor: of every candidate.
        start_tokens: the numbers of start tokens n̂ that may be chosen; `START_TOKENS` are the paper's.
        ceiling: the largest factor, in units of s.
    """

    rope: Rope
    length: int
    attention_factor: float = 1.0
    start_tokens: tuple[int, ...] = (0,)
    ceiling: float = 1.25

    def __post_init__(self) -> None:
        if not self.start_tokens:
            raise LongRopeError("start_tokens is empty; (0,) searches without start tokens")
        self.rope.scale(self.length)

    @property
    def pairs(self) -> int:
        """Number of factors."""
        return self.rope.dim // 2

    @property
    def largest(self) -> float:
        """The largest factor."""
        return self.ceiling * self.rope.scale(self.length)

    def scaling(self, factors: Sequence[float], start: int = 0, *, scheme: str = "searched") -> Scaling:
        """The candidate with these factors and the ``start``-th number of start tokens."""
        return Scaling(
            [float(factor) for factor in factors],
            attention_factor=self.attention_factor,
            start_tokens=self.start_tokens[start],
            scheme=scheme,
            length=self.length,
        )

    def inside(self, scaling: Scaling) -> np.ndarray:
        """The nearest factors that do not decrease and keep the bounds, ``(dim // 2,)``."""
        factors = np.asarray(scaling.factors)
        if len(factors) != self.pairs:
            raise LongRopeError(f"a start of the search has {len(factors)} factors, the rope {self.pairs} pairs")
        return np.maximum.accumulate(np.clip(factors, 1.0, self.largest))
