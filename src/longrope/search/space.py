"""What a search may choose: factors within bounds and a shape, the attention factor, the number of start tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.search.parametrizations import Parametrization, parametrization

START_TOKENS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)


@dataclass(frozen=True)
class Space:
    """Candidates 1 ≤ λ ≤ ceiling·s for one rope and target length (LongRoPE section 3.3, table 4).

    With the scaling of an earlier stage they are λ = λ_before·μ, and all of this is said of μ: 1 ≤ μ ≤ ceiling·s with
    s = length / the length of that stage. Candidates and starts always have the whole λ.

    Args:
        rope: the model's geometry.
        length: the target length in tokens.
        attention_factor: of every candidate, or where its search starts.
        attention: whether it is searched, from 1 to twice as far from it as YaRN's.
        start_tokens: the numbers of start tokens n̂ that may be chosen; `START_TOKENS` are the paper's.
        ceiling: the largest factor, in units of s.
        parametrization: one of `PARAMETRIZATIONS`, for the methods that move through coordinates.
        before: what the model was fine-tuned with in the stage before, if there was one.

    Raises:
        LongRopeError: if the length is below L0, the form unknown, or there is nothing to choose.
    """

    rope: Rope
    length: int
    attention_factor: float = 1.0
    attention: bool = False
    start_tokens: tuple[int, ...] = (0,)
    ceiling: float = 1.25
    parametrization: str = "free"
    before: Scaling | None = None

    def __post_init__(self) -> None:
        if not self.start_tokens:
            raise LongRopeError("start_tokens is empty; (0,) searches without start tokens")
        if self.largest <= 1:
            raise LongRopeError(
                f"length = {self.length} with ceiling = {self.ceiling} leaves no factor to choose but 1; "
                f"search a length above the original {self.relative.original_length}"
            )
        _ = self.coordinate_map

    @property
    def pairs(self) -> int:
        """Number of factors."""
        return self.rope.dim // 2

    @cached_property
    def relative(self) -> Rope:
        """The geometry that the model is used to: what μ are relative to, and s."""
        return self.rope if self.before is None else self.before.rope_after(self.rope)

    @property
    def scale(self) -> float:
        """The scale s of the target length to that which the model is used to."""
        return self.relative.scale(self.length)

    @property
    def largest(self) -> float:
        """The largest μ."""
        return self.ceiling * self.scale

    @property
    def largest_attention(self) -> float:
        """The largest attention factor, 1 + 0.2·ln s; YaRN's is 1 + 0.1·ln s (YaRN eq. 22)."""
        return max(1 + 0.2 * math.log(self.rope.scale(self.length)), self.attention_factor)

    @cached_property
    def coordinate_map(self) -> Parametrization:
        """The coordinates of the factors."""
        return parametrization(self.parametrization, self.relative, self.scale, self.ceiling)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest value of each coordinate: those of the shape, log attention factor, index of n̂."""
        attention = [(math.log(min(1.0, self.attention_factor)), math.log(self.largest_attention))] * self.attention
        start = [(0, len(self.start_tokens) - 1)] * (len(self.start_tokens) > 1)
        lower, upper = np.array([*attention, *start], dtype=float).reshape(-1, 2).T
        return np.concatenate([self.coordinate_map.lower, lower]), np.concatenate([self.coordinate_map.upper, upper])

    @property
    def spread(self) -> np.ndarray:
        """What counts as one unit of change of each coordinate."""
        lower, upper = self.bounds
        shaped = len(self.coordinate_map.spread)
        return np.concatenate([self.coordinate_map.spread, (upper - lower)[shaped:]])

    def at(self, x: np.ndarray) -> Scaling:
        """The candidate with these coordinates, ``(coordinates,)``."""
        shaped = len(self.coordinate_map.lower)
        factors = np.exp(self.coordinate_map.log_factors(x[:shaped]))
        attention = math.exp(x[shaped]) if self.attention else self.attention_factor
        start = round(float(x[-1])) if len(self.start_tokens) > 1 else 0
        return self.scaling(np.maximum(factors, 1.0).tolist(), start, attention)

    def coordinates(self, scaling: Scaling) -> np.ndarray:
        """Coordinates within the bounds that come close to a scaling, ``(coordinates,)``."""
        x = self.coordinate_map.nearest(np.log(self.inside(scaling)))
        lower, upper = (bound[len(x) :] for bound in self.bounds)
        extra = [math.log(self.attention_factor)] * self.attention + [0.0] * (len(self.start_tokens) > 1)
        return np.concatenate([x, np.clip(extra, lower, upper)])

    def slope(self, x: np.ndarray, gradient: Sequence[float]) -> np.ndarray:
        """The gradient by coordinate, ``(coordinates,)``, from an `Answer`'s; 0 for n̂, which is a whole number."""
        by_factor, by_attention = np.asarray(gradient[:-1]), gradient[-1]
        shaped = self.coordinate_map.jacobian(x[: len(self.coordinate_map.lower)]).T @ by_factor
        return np.concatenate([shaped, [by_attention] * self.attention, [0.0] * (len(self.start_tokens) > 1)])

    def scaling(self, factors: Sequence[float], start: int = 0, attention: float | None = None) -> Scaling:
        """The candidate with these μ, the ``start``-th number of start tokens, and an attention factor."""
        return Scaling(
            [float(factor * before) for factor, before in zip(factors, self._before, strict=True)],
            attention_factor=self.attention_factor if attention is None else attention,
            start_tokens=self.start_tokens[start],
            scheme="searched",
            length=self.length,
        )

    def inside(self, scaling: Scaling) -> np.ndarray:
        """The μ of a scaling, moved within the bounds, ``(dim // 2,)``.

        Raises:
            LongRopeError: if they belong to another rope.
        """
        factors = np.asarray(scaling.factors)
        if len(factors) != self.pairs:
            raise LongRopeError(
                f"a start of the search has {len(factors)} factors, the rope {self.pairs} pairs: it is another rope's"
            )
        return np.clip(factors / self._before, 1.0, self.largest)

    @property
    def _before(self) -> np.ndarray:
        return np.array(self.relative.factors or [1.0] * self.pairs)
