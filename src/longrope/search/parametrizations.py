"""Parametrizations: ways to write the log factors of all pairs as a vector of coordinates within bounds.

In every parametrization the factors stay within 1 … ceiling·s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from longrope.errors import LongRopeError, unknown
from longrope.rope import Rope
from longrope.yarn_fit import nearest_yarn

KNOTS = 6


@dataclass(frozen=True)
class Parametrization:
    """Coordinates of the log factors.

    Args:
        log_factors: Function from coordinates ``(n,)`` to log factors ``(dim // 2,)``.
        lower: Least value of each coordinate, ``(n,)``.
        upper: Largest value of each coordinate, ``(n,)``.
        unit: Typical change of each coordinate, ``(n,)``.
        initial_points: First points of `nearest`, each ``(n,)``; several where one could get stuck.
        project: Function from log factors to the nearest coordinates, where there is a better one than `nearest`'s.
        smooth: Function to take the slopes of, where ``log_factors`` has steps.
    """

    log_factors: Callable[[np.ndarray], np.ndarray]
    lower: np.ndarray
    upper: np.ndarray
    unit: np.ndarray
    initial_points: Sequence[np.ndarray]
    project: Callable[[np.ndarray], np.ndarray] | None = None
    smooth: Callable[[np.ndarray], np.ndarray] | None = None

    def jacobian(self, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
        """Return the derivatives of the log factors by the coordinates, ``(dim // 2, n)``, by central differences."""
        moves, function = step * np.diag(self.unit), self.smooth or self.log_factors
        slopes = [(function(x + move) - function(x - move)) / (2 * step) for move in moves]
        return np.stack(slopes, axis=1) / self.unit

    def nearest(self, log_factors: np.ndarray, steps: int = 100) -> np.ndarray:
        """Return coordinates within the bounds with log factors close to the given ones (Gauss-Newton, active set)."""
        if self.project is not None:
            return self.project(log_factors)

        def distance(x: np.ndarray) -> float:
            return float(np.sum((log_factors - self.log_factors(x)) ** 2))

        return min((self._descend_towards(log_factors, x, steps, distance) for x in self.initial_points), key=distance)

    def _descend_towards(
        self, log_factors: np.ndarray, x: np.ndarray, steps: int, distance: Callable[[np.ndarray], float]
    ) -> np.ndarray:
        best = x
        for _ in range(steps):
            rest = log_factors - self.log_factors(x)
            slopes = self.jacobian(x) * self.unit
            uphill = slopes.T @ rest
            at_bound = ((x <= self.lower) & (uphill < 0)) | ((x >= self.upper) & (uphill > 0))
            slopes[:, at_bound] = 0
            move = np.linalg.solve(slopes.T @ slopes + 1e-6 * np.eye(len(x)), slopes.T @ rest)
            before, x = x, np.clip(x + 0.5 * self.unit * move, self.lower, self.upper)
            best = min(best, x, key=distance)
            if np.array_equal(x, before):  # and so in all other steps
                break
        return best


def free(rope: Rope, scale: float, ceiling: float) -> Parametrization:
    """Return one coordinate for each log factor."""
    sums = _linear(np.eye(rope.dim // 2), np.log(ceiling * scale))
    return replace(sums, log_factors=lambda x: x)  # the bounds are enough: not clipped, its slope is 1 on them too


def monotone(rope: Rope, scale: float, ceiling: float) -> Parametrization:
    """Return the increments of the log factors as coordinates, none below 0."""
    return _linear(np.tril(np.ones((rope.dim // 2, rope.dim // 2))), np.log(ceiling * scale))


def spline(rope: Rope, scale: float, ceiling: float) -> Parametrization:
    """Return a monotone linear spline, with the increments between `KNOTS` evenly spread pairs as coordinates."""
    pairs = rope.dim // 2
    knots = min(KNOTS, pairs)
    hats = [np.interp(np.arange(pairs), np.linspace(0, pairs - 1, knots), hat) for hat in np.eye(knots)]
    return _linear(np.stack(hats, axis=1) @ np.tril(np.ones((knots, knots))), np.log(ceiling * scale))


def ramp(rope: Rope, scale: float, ceiling: float) -> Parametrization:
    """Return YaRN's ramp with three coordinates: its first pair, its width in pairs, the log factor after it."""
    pairs, top = rope.dim // 2, np.log(ceiling * scale)

    def log_factors(x: np.ndarray) -> np.ndarray:
        return np.clip(x[2] * np.clip((np.arange(pairs) - x[0]) / max(x[1], 0.25), 0, 1), 0, top)

    lower, upper = np.array([-pairs / 4, 0.5, 0.0]), np.array([pairs - 1.0, pairs, top])
    firsts, widths = np.linspace(-pairs / 8, 0.8 * pairs, 5), (1.0, pairs / 4, pairs / 2)
    initial_points = [np.array([first, width, np.log(scale)]) for first in firsts for width in widths]
    return Parametrization(
        log_factors,
        lower,
        upper,
        unit=np.array([pairs / 8, pairs / 8, max(np.log(scale), 1e-3)]),
        initial_points=[np.clip(point, lower, upper) for point in initial_points],
    )


def critical(rope: Rope, scale: float, ceiling: float) -> Parametrization:
    """Return LongRoPE2's parametrization, with the critical pair κ and the log factors from it on as coordinates.

    Below κ the factors are λ_κ^(i/κ), as NTK's. From κ on they lie in s … ceiling·s and do not decrease.

    Raises:
        LongRopeError: If the rope has one pair, as κ is the second pair or a later one.
    """
    if rope.dim < 4:
        raise LongRopeError(
            f"parametrization = 'critical': a rope of dim {rope.dim} has no pair below a critical one. "
            "Use another parametrization, such as free."
        )
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
        unit=np.array([pairs / 8, *[max(top - low, 1e-3)] * pairs]),
        initial_points=[np.array([kappa, *[(low + top) / 2] * pairs]) for kappa in np.linspace(1, pairs - 1, 6)],
    )


def yarn(rope: Rope, scale: float, ceiling: float) -> Parametrization:
    """Return YaRN's parametrization: the first and the last pair of its band, and the logarithm of its factor.

    The ends of the band are ``beta_fast`` and ``beta_slow`` in pairs. A candidate's band ends at the nearest whole
    pairs, because several engines compute with no others, and slopes are those of the band between them. The factor is
    at least s, because engines take L0 times the factor for the longest sequence.

    Raises:
        LongRopeError: If the rope carries factors, whose product with a YaRN is not a YaRN.
    """
    if rope.factors:
        raise LongRopeError(
            "parametrization = 'yarn': the model is used to factors already, and their product with a YaRN is not a "
            "YaRN. Use another parametrization, or start from a plain checkpoint."
        )
    pairs, low, top = rope.dim // 2, np.log(scale), np.log(max(ceiling, 1.0) * scale)

    def smooth(x: np.ndarray) -> np.ndarray:
        ramp = np.clip((np.arange(pairs) - x[0]) / max(x[1] - x[0], 0.5), 0, 1)
        return -np.log(ramp * np.exp(-x[2]) + (1 - ramp))

    def log_factors(x: np.ndarray) -> np.ndarray:
        first = np.clip(np.round(x[0]), 0, max(pairs - 2, 0))
        return smooth(np.array([first, np.clip(np.round(x[1]), first + 1, rope.dim - 1), x[2]]))

    def project(log_factors: np.ndarray) -> np.ndarray:
        first, last, factor = nearest_yarn(rope, log_factors, least=np.exp(low), most=np.exp(top))
        return np.array([first, last, np.log(factor)])

    return Parametrization(
        log_factors,
        lower=np.array([0.0, 1.0, low]),
        upper=np.array([max(pairs - 2.0, 0.0), rope.dim - 1.0, max(top, low)]),
        unit=np.array([pairs / 8, pairs / 8, max(low, 1e-3)]),
        initial_points=[],
        project=project,
        smooth=smooth,
    )


PARAMETRIZATIONS = {
    "free": free,
    "monotone": monotone,
    "spline": spline,
    "ramp": ramp,
    "critical": critical,
    "yarn": yarn,
}


def make_parametrization(name: str, rope: Rope, scale: float, ceiling: float) -> Parametrization:
    """Return the parametrization of a name, for factors of 1 … ceiling·scale.

    Args:
        name: A key of `PARAMETRIZATIONS`.
        rope: Geometry of the model.
        scale: Ratio of the target length to the length that the model is used to.
        ceiling: Largest factor, in units of the scale.

    Raises:
        LongRopeError: If the name is unknown.
    """
    if name not in PARAMETRIZATIONS:
        raise unknown("parametrization", name, PARAMETRIZATIONS)
    return PARAMETRIZATIONS[name](rope, scale, ceiling)


def _linear(columns: np.ndarray, top: float) -> Parametrization:
    """Return log factors that are sums of columns ``(dim // 2, n)``; the coordinates are their weights, 0 … top."""
    count = columns.shape[1]
    low, high, sums = np.zeros(count), np.full(count, top), columns.sum(axis=1).max()
    unit = np.maximum(high / np.sqrt(sums), 1e-3)
    return Parametrization(
        lambda x: np.clip(columns @ x, 0, top), low, high, unit=unit, initial_points=[high / (2 * sums)]
    )
