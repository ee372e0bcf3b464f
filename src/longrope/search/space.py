"""The search space: bounds and coordinates of the factors, the attention factor and the number of start tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from longrope.checks import as_list, positive, whole
from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.search.parametrizations import Parametrization, make_parametrization
from longrope.units import token_count

START_TOKENS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)


@dataclass(frozen=True)
class Space:
    """Candidates 1 ≤ λ ≤ ceiling·s for one rope and target length (LongRoPE section 3.3, table 4).

    After an earlier stage they are λ = λ_before·μ, and all bounds hold for μ: 1 ≤ μ ≤ ceiling·s with s = length / the
    length of that stage. Candidates and starts always have the complete λ.

    Args:
        rope: Geometry of the model, or the model or its config.
        length: Target length in tokens, such as 32768 or ``"32k"``.
        attention_factor: Attention factor of every candidate, or of the first ones if it is searched.
        search_attention: Whether the attention factor is searched, from 1 to twice as far from it as YaRN's.
        start_tokens: Numbers of start tokens n̂ to choose from; the paper's are `START_TOKENS`.
        ceiling: Largest factor, in units of s.
        parametrization: Coordinates of the factors, a key of `PARAMETRIZATIONS`.
        before: Scaling that the model was fine-tuned with in the stage before; None without such a stage.

    Raises:
        LongRopeError: If the length is below L0, the parametrization is unknown, or there is nothing to choose.
    """

    rope: Rope
    length: int
    attention_factor: float = 1.0
    search_attention: bool = False
    start_tokens: tuple[int, ...] = (0,)
    ceiling: float = 1.25
    parametrization: str = "free"
    before: Scaling | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", token_count("length", self.length, 1))
        object.__setattr__(self, "rope", Rope.of(self.rope))
        starts = [whole(f"start_tokens[{i}]", value, 0) for i, value in enumerate(as_list(self.start_tokens))]
        object.__setattr__(self, "start_tokens", tuple(starts))
        for name in ("attention_factor", "ceiling"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        if not self.start_tokens:
            raise LongRopeError("start_tokens = (): empty. Use (0,) to search without start tokens.")
        if self.largest <= 1:
            raise LongRopeError(
                f"length = {self.length}: with ceiling = {self.ceiling} the only possible factor is 1. "
                f"Search a length above the original {self.relative.original_length}."
            )
        _ = self.coordinate_map

    @property
    def pairs(self) -> int:
        """Number of factors."""
        return self.rope.dim // 2

    @cached_property
    def relative(self) -> Rope:
        """Geometry that the model is used to; μ and s are relative to it."""
        return self.rope if self.before is None else self.before.rope_after(self.rope)

    @property
    def scale(self) -> float:
        """Ratio s of the target length to the length that the model is used to."""
        return self.relative.scale(self.length)

    @property
    def largest(self) -> float:
        """Largest μ."""
        return self.ceiling * self.scale

    @property
    def largest_attention(self) -> float:
        """Largest attention factor, 1 + 0.2·ln s; YaRN's is 1 + 0.1·ln s (YaRN eq. 22)."""
        return max(1 + 0.2 * math.log(self.rope.scale(self.length)), self.attention_factor)

    @cached_property
    def coordinate_map(self) -> Parametrization:
        """Coordinates of the factors."""
        return make_parametrization(self.parametrization, self.relative, self.scale, self.ceiling)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest value of each coordinate: of the factors, the log attention factor, the index of n̂."""
        lower, upper = list(self.coordinate_map.lower), list(self.coordinate_map.upper)
        if self.search_attention:
            lower.append(math.log(min(1.0, self.attention_factor)))
            upper.append(math.log(self.largest_attention))
        if len(self.start_tokens) > 1:
            lower.append(0.0)
            upper.append(len(self.start_tokens) - 1.0)
        return np.array(lower), np.array(upper)

    @property
    def unit(self) -> np.ndarray:
        """Typical change of each coordinate."""
        lower, upper = self.bounds
        size = len(self.coordinate_map.unit)
        ranges = np.maximum((upper - lower)[size:], 1e-3)  # at s = 1 the attention factor has a range of 0
        return np.concatenate([self.coordinate_map.unit, ranges])

    def candidate(self, x: np.ndarray) -> Scaling:
        """Return the candidate with coordinates ``(coordinates,)``."""
        size = len(self.coordinate_map.lower)
        factors = np.exp(self.coordinate_map.log_factors(x[:size]))
        attention = math.exp(x[size]) if self.search_attention else self.attention_factor
        start = round(float(x[-1])) if len(self.start_tokens) > 1 else 0
        return self.scaling(np.maximum(factors, 1.0).tolist(), start, attention)

    def coordinates(self, scaling: Scaling) -> np.ndarray:
        """Return coordinates within the bounds that come close to a scaling, ``(coordinates,)``."""
        x = self.coordinate_map.nearest(np.log(self.clip(scaling)))
        lower, upper = self.bounds
        attention = [math.log(self.attention_factor)] if self.search_attention else []
        start = [0.0] if len(self.start_tokens) > 1 else []
        return np.concatenate([x, np.clip([*attention, *start], lower[len(x) :], upper[len(x) :])])

    def coordinate_gradient(self, x: np.ndarray, gradient: Sequence[float]) -> np.ndarray:
        """Return the gradient by the coordinates, ``(coordinates,)``; 0 for n̂, which is a whole number.

        Args:
            x: Coordinates, ``(coordinates,)``.
            gradient: Gradient of a `CandidateLoss`, ``(dim // 2 + 1,)``.
        """
        by_factor, by_attention = np.asarray(gradient[:-1]), gradient[-1]
        by_coordinate = self.coordinate_map.jacobian(x[: len(self.coordinate_map.lower)]).T @ by_factor
        attention = [by_attention] if self.search_attention else []
        start = [0.0] if len(self.start_tokens) > 1 else []
        return np.concatenate([by_coordinate, attention, start])

    def scaling(self, factors: Sequence[float], start: int = 0, attention: float | None = None) -> Scaling:
        """Return a candidate.

        Args:
            factors: The μ of all pairs, ``(dim // 2,)``.
            start: Index into the numbers of start tokens.
            attention: Attention factor; None for the space's.
        """
        return Scaling(
            [float(factor * before) for factor, before in zip(factors, self.factors_before, strict=True)],
            attention_factor=self.attention_factor if attention is None else attention,
            start_tokens=self.start_tokens[start],
            scheme="searched",
            length=self.length,
        )

    def clip(self, scaling: Scaling) -> np.ndarray:
        """Return the μ of a scaling, clipped to the bounds, ``(dim // 2,)``.

        Raises:
            LongRopeError: If the scaling belongs to another rope.
        """
        factors = np.asarray(scaling.factors)
        if len(factors) != self.pairs:
            raise LongRopeError(
                f"a start of the search has {len(factors)} factors, but the rope has {self.pairs} pairs. "
                "Start from factors of this model."
            )
        return np.clip(factors / self.factors_before, 1.0, self.largest)

    @property
    def factors_before(self) -> np.ndarray:
        """The λ of the stage before, which every μ multiplies, ``(dim // 2,)``."""
        return np.ones(self.pairs) if self.before is None else np.array(self.before.factors)
