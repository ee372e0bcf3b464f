"""Shapes: ways to write the log factors of all pairs as a vector of coordinates within bounds.

Whatever the shape, the factors stay within 1 … ceiling·s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from longrope.errors import unknown
from longrope.rope import Rope

KNOTS = 6


@dataclass(frozen=True)
class Parametrization:
    """Coordinates and what they mean.

    Args:
        log_factors: from coordinates ``(n,)`` to log factors ``(dim // 2,)``.
        lower: least value of each coordinate, ``(n,)``.
        upper: largest value of each coordinate, ``(n,)``.
        spread: what counts as one unit of change of each coordinate, ``(n,)``.
        beginnings: where `nearest` begins, each ``(n,)``; several where it could get stuck.
    """

    log_factors: Callable[[np.ndarray], np.ndarray]
    lower: np.ndarray
    upper: np.ndarray
    spread: np.ndarray
    beginnings: Sequence[np.ndarray]

    def jacobian(self, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
        """How the log factors change with the coordinates, ``(dim // 2, n)``, by central differences."""
        moves = step * np.diag(self.spread)
        slopes = [(self.log_factors(x + move) - self.log_factors(x - move)) / (2 * step) for move in moves]
        return np.stack(slopes, axis=1) / self.spread

    def nearest(self, log_factors: np.ndarray, steps: int = 100) -> np.ndarray:
        """Coordinates within the bounds whose log factors come close to the given ones (Gauss-Newton, active set)."""

        def distance(x: np.ndarray) -> float:
            return float(np.sum((log_factors - self.log_factors(x)) ** 2))

        return min((self._towards(log_factors, x, steps, distance) for x in self.beginnings), key=distance)

    def _towards(
        self, log_factors: np.ndarray, x: np.ndarray, steps: int, distance: Callable[[np.ndarray], float]
    ) -> np.ndarray:
        best = x
        for _ in range(steps):
            rest = log_factors - self.log_factors(x)
            slopes = self.jacobian(x) * self.spread
            uphill = slopes.T @ rest
            held = ((x <= self.lower) & (uphill < 0)) | ((x >= self.upper) & (uphill > 0))
            slopes[:, held] = 0
            move = np.linalg.solve(slopes.T @ slopes + 1e-6 * np.eye(len(x)), slopes.T @ rest)
            x = np.clip(x + 0.5 * self.spread * move, self.lower, self.upper)
            best = min(best, x, key=distance)
        return best


def free(rope: Rope, scale: float, ceiling: float) -> Parametrization:
    """Every log factor for itself."""
    sums = _linear(np.eye(rope.dim // 2), np.log(ceiling * scale))
    return replace(sums, log_factors=lambda x: x)  # the bounds are enough: not clipped, its slope is 1 on them too


def monotone(rope: Rope, scale: float, ceiling: float) -> Parametrization:
    """The increments of the log factors, none below 0."""
    return _linear(np.tril(np.ones((rope.dim // 2, rope.dim // 2))), np.log(ceiling * scale))


def spline(rope: Rope, scale: float, ceiling: float) -> Parametrization:
    """A monotone linear spline: the increments between `KNOTS` evenly spread pairs."""
    pairs = rope.dim // 2
    knots = min(KNOTS, pairs)
    hats = [np.interp(np.arange(pairs), np.linspace(0, pairs - 1, knots), hat) for hat in np.eye(knots)]
    return _linear(np.stack(hats, axis=1) @ np.tril(np.ones((knots, knots))), np.log(ceiling * scale))


def ramp(rope: Rope, scale: float, ceiling: float) -> Parametrization:
    """YaRN's form with three numbers: the first pair of the ramp, its width in pairs, the log factor after it."""
    pairs, top = rope.dim // 2, np.log(ceiling * scale)

    def log_factors(x: np.ndarray) -> np.ndarray:
        return np.clip(x[2] * np.clip((np.arange(pairs) - x[0]) / max(x[1], 0.25), 0, 1), 0, top)

    lower, upper = np.array([-pairs / 4, 0.5, 0.0]), np.array([pairs - 1.0, pairs, top])
    firsts, widths = np.linspace(-pairs / 8, 0.8 * pairs, 5), (1.0, pairs / 4, pairs / 2)
    beginnings = [np.array([first, width, np.log(scale)]) for first in firsts for width in widths]
    return Parametrization(
        log_factors,
        lower,
        upper,
        spread=np.array([pairs / 8, pairs / 8, np.log(scale)]),
        beginnings=[np.clip(one, lower, upper) for one in beginnings],
    )


def critical(rope: Rope, scale: float, ceiling: float) -> Parametrization:
    """LongRoPE2's: the critical pair κ, λ_κ^(i/κ) below it (as NTK's), from it on s … ceiling·s, not decreasing."""
    pairs, low, top = rope.dim // 2, np.log(scale), np.log(max(ceiling, 1.0) * scale)

    def log_factors(x: np.ndarray) -> np.ndarray:
        kappa, pair = float(np.clip(x[0], 1, pairs - 1)), np.arange(pairs)
        first = int(kappa)
        tail = np.maximum.accumulate(np.clip(x[1 + first :], low, top))
        return np.minimum(pair / kappa, 1) * tail[np.maximum(pair - first, 0)]

    return Parametrization(
        log_factors,
        lower=np.array([1.0, *[low] * pairs]),
        upper=np.array([pairs - 1.0, *[top] * pairs]),
        spread=np.array([pairs / 8, *[max(top - low, 1e-3)] * pairs]),
        beginnings=[np.array([kappa, *[(low + top) / 2] * pairs]) for kappa in np.linspace(1, pairs - 1, 6)],
    )


PARAMETRIZATIONS = {"free": free, "monotone": monotone, "spline": spline, "ramp": ramp, "critical": critical}


def parametrization(name: str, rope: Rope, scale: float, ceiling: float) -> Parametrization:
    """The shape of a name, for factors of 1 … ceiling·scale.

    Raises:
        LongRopeError: if there is no such shape.
    """
    if name not in PARAMETRIZATIONS:
        raise unknown("space", name, PARAMETRIZATIONS)
    return PARAMETRIZATIONS[name](rope, scale, ceiling)


def _linear(columns: np.ndarray, top: float) -> Parametrization:
    """Log factors that are sums of columns ``(dim // 2, n)`` with weights 0 … top."""
    low, high, sums = np.zeros(columns.shape[1]), np.full(columns.shape[1], top), columns.sum(axis=1).max()
    unit = np.maximum(high / np.sqrt(sums), 1e-3)
    return Parametrization(
        lambda x: np.clip(columns @ x, 0, top), low, high, spread=unit, beginnings=[high / (2 * sums)]
    )
