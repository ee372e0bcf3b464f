"""Gradient search: Adam on the coordinates of a space, with the loss differentiated through cos and sin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from longrope.scaling import Scaling
from longrope.search.evolution import sized
from longrope.search.protocol import BACKWARD_COST, CandidateBatch, Proposals
from longrope.search.space import Space

EVERY = 10  # steps from one comparison on all items to the next
STARTS = 2  # as many schemes does it start from unless told otherwise


@dataclass(frozen=True)
class Gradient:
    """Adam (Kingma and Ba 2015) from the best of the starts: one item a step, the step size falling as a cosine.

    The loss is rough in the fast pairs: at a distance of d tokens a change of log λ turns pair i by d·inv_freq_i. So
    each pair's step is that of its log factor times min(1, 1 / (reach·inv_freq_i)): no step turns a pair further, at
    a distance of ``reach`` tokens, than it changes the log factor of the slow ones.

    A candidate on all items is the mean of the last `EVERY` steps: single steps follow single items.

    Args:
        steps: forward and backward passes over one item each.
        rate: first step size, in log factors, as a part of ln s / sqrt(steps).
        betas: Adam's.
        reach: that distance in tokens.
        frozen: pairs that turn more often than that within L0 keep their factors (free space only); none if None.
    """

    steps: int = 60
    rate: float = 0.2
    betas: tuple[float, float] = (0.9, 0.99)
    reach: float = 8.0
    frozen: float | None = None
    shaped: ClassVar[bool] = True
    ceiling: ClassVar[float] = 2.0
    parametrization: ClassVar[str] = "free"
    starts: ClassVar[tuple[str, ...]] = ("yarn", "heuristic")

    def sized(self, population: int) -> Gradient:
        """The same with another number of steps."""
        return replace(self, steps=sized(population))

    def within(self, passes: int, items: int) -> Gradient:
        """The same with as many steps as that many forward passes pay for, starts and comparisons included."""
        left = passes - STARTS * items
        rounds, rest = divmod(left, BACKWARD_COST * EVERY + items)
        return replace(self, steps=max(1, EVERY * rounds + max(0, min(EVERY, (rest - items) // BACKWARD_COST))))

    def passes(self, items: int) -> int:
        """About how many forward passes over one item it costs."""
        return STARTS * items + BACKWARD_COST * self.steps + math.ceil(self.steps / EVERY) * items

    def converse(self, space: Space, starts: Sequence[Scaling], rng: np.random.Generator) -> Proposals:
        """The starts, then one candidate a step; arguments as for `Paper.converse`."""
        candidates = [space.at(space.coordinates(start)) for start in starts]
        answers = yield CandidateBatch(candidates)
        best = min(range(len(answers)), key=lambda i: answers[i].loss)
        yield from self.descend(space, space.coordinates(candidates[best]))

    def descend(self, space: Space, x: np.ndarray) -> Proposals:
        """One candidate a step from coordinates on; in the end, every n̂ for the best, if n̂ is searched."""
        (lower, upper), weights, unit = space.bounds, self._weights(space), self._unit(space, x)
        adam, rate = _Adam(len(x), self.betas), self.rate * math.log(space.scale)
        best, recent = (math.inf, x), []
        for step in range(self.steps):
            state = {"step": step, "x": x.tolist(), "rate": rate, **adam.state}
            (answer,) = yield CandidateBatch([space.at(x)], state, turn=step)
            gradient = np.array(answer.gradient)
            if math.isfinite(answer.loss) and np.isfinite(gradient).all():
                move = adam.move(space.slope(x, (gradient * weights).tolist()) * unit)
                size = rate / math.sqrt(self.steps) * (1 + math.cos(math.pi * step / self.steps)) / 2
                x = np.clip(x - size * unit * move, lower, upper)
                recent.append(x)
            else:  # half as far, from the best
                x, rate, adam = best[1], rate / 2, _Adam(len(x), self.betas)
            if (step + 1) % EVERY == 0 or step + 1 == self.steps:
                middle = np.mean(recent or [x], axis=0)
                (answer,) = yield CandidateBatch([space.at(middle)], state)
                best, recent = min(best, (answer.loss, middle), key=lambda one: one[0]), []
        if len(space.start_tokens) > 1:
            yield CandidateBatch([space.at(np.append(best[1][:-1], start)) for start in range(len(space.start_tokens))])

    def _damping(self, space: Space) -> np.ndarray:
        return np.minimum(1.0, 1.0 / (self.reach * space.relative.inv_freq))

    def _weights(self, space: Space) -> np.ndarray:
        """What the gradient by each log factor, and by the log attention factor, counts: ``(dim // 2 + 1,)``."""
        turns = space.relative.original_length / space.relative.wavelengths
        moves = np.ones(space.pairs) if self.frozen is None else turns <= self.frozen
        return np.append(self._damping(space) * moves, 1.0)

    def _unit(self, space: Space, x: np.ndarray) -> np.ndarray:
        """The step of each coordinate that moves no pair further than its damping allows, ``(coordinates,)``."""
        shaped, unit = len(space.coordinate_map.lower), np.zeros(len(x))
        furthest = (np.abs(space.coordinate_map.jacobian(x[:shaped])) / self._damping(space)[:, None]).max(axis=0)
        unit[:shaped] = np.where(furthest > 1e-6, 1 / furthest.clip(min=1e-6), space.coordinate_map.spread)
        if space.attention:
            unit[shaped] = 0.25
        return unit


@dataclass
class _Adam:
    """Mean and mean square of the slopes so far."""

    size: int
    betas: tuple[float, float]
    count: int = 0
    first: np.ndarray = field(init=False)
    second: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.first, self.second = np.zeros(self.size), np.zeros(self.size)

    @property
    def state(self) -> dict[str, Any]:
        return {"count": self.count, "first": self.first.tolist(), "second": self.second.tolist()}

    def move(self, slope: np.ndarray) -> np.ndarray:
        """The step against which to go, about 1 in each coordinate."""
        self.count += 1
        self.first = self.betas[0] * self.first + (1 - self.betas[0]) * slope
        self.second = self.betas[1] * self.second + (1 - self.betas[1]) * slope**2
        mean = self.first / (1 - self.betas[0] ** self.count)
        square = self.second / (1 - self.betas[1] ** self.count)
        return mean / (np.sqrt(square) + 1e-12)
