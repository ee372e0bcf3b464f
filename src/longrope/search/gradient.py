"""Gradient search: Adam on the coordinates of a space, with the loss differentiated through cos and sin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from longrope.rope import Scaling
from longrope.search.evolution import sized
from longrope.search.objective import BACKWARD, Ask, Conversation
from longrope.search.space import Space

REACH = 8  # tokens
STARTS = 2  # as many schemes does it start from unless told otherwise


@dataclass(frozen=True)
class Gradient:
    """Adam (Kingma and Ba 2015) from the best of the starts, the step size falling as a cosine.

    The loss is rough in the fast pairs: at a distance of d tokens a change of log λ turns pair i by d·inv_freq_i. So
    each pair's step is that of its log factor times min(1, 1 / (REACH·inv_freq_i)): no step turns a pair further, at
    a distance of `REACH` tokens, than it changes the log factor of the slow ones.

    Args:
        steps: forward and backward passes over all items.
        rate: first step size, in log factors, as a part of ln s / sqrt(steps).
        betas: Adam's.
        frozen: pairs that turn more often than that within L0 keep their factors (free space only); none if None.
    """

    steps: int = 30
    rate: float = 0.2
    betas: tuple[float, float] = (0.9, 0.99)
    frozen: float | None = None
    ceiling: ClassVar[float] = 2.0
    form: ClassVar[str] = "free"
    starts: ClassVar[tuple[str, ...]] = ("yarn", "heuristic")

    def sized(self, population: int) -> Gradient:
        """The same with another number of steps."""
        return replace(self, steps=sized(population))

    def within(self, evaluations: int) -> Gradient:
        """The same with as many steps as that many forward passes over all items pay for, the starts' included."""
        return replace(self, steps=max(1, (evaluations - STARTS) // BACKWARD))

    @property
    def evaluations(self) -> int:
        """About how many forward passes over all items its steps cost."""
        return STARTS + BACKWARD * self.steps

    def converse(self, space: Space, starts: Sequence[Scaling], rng: np.random.Generator) -> Conversation:
        """The starts, then one candidate a step; arguments as for `Paper.converse`."""
        candidates, best = [space.at(space.coordinates(start)) for start in starts], 0
        if len(candidates) > 1:
            answers = yield Ask(candidates)
            best = min(range(len(answers)), key=lambda i: answers[i].loss)
        yield from self.descend(space, space.coordinates(candidates[best]))

    def descend(self, space: Space, x: np.ndarray) -> Conversation:
        """One candidate a step from coordinates on; in the end, every n̂ for the best, if n̂ is searched."""
        (lower, upper), shaped = space.bounds, len(space.shape.lower)
        rope = space.rope
        damping = np.minimum(1.0, 1.0 / (REACH * rope.inv_freq))
        moves = self.frozen is None or rope.original_length / rope.wavelengths <= self.frozen
        unit = np.zeros(len(x))
        unit[:shaped] = 1.0 / (np.abs(space.shape.jacobian(x[:shaped])) / damping[:, None]).max(axis=0).clip(min=1e-6)
        if space.attention:
            unit[shaped] = 0.25
        first, second, best, rate = np.zeros(len(x)), np.zeros(len(x)), (math.inf, x), self.rate / math.sqrt(self.steps)
        since = 0
        for step in range(self.steps):
            state = {"step": step, "x": x.tolist(), "first": first.tolist(), "second": second.tolist(), "rate": rate}
            (answer,) = yield Ask([space.at(x)], state, gradient=True)
            gradient = np.array(answer.gradient)
            if not (math.isfinite(answer.loss) and np.isfinite(gradient).all()):  # half as far, from the best
                x, rate, since = best[1], rate / 2, 0
                first, second = np.zeros(len(x)), np.zeros(len(x))
                continue
            if answer.loss < best[0]:
                best = (answer.loss, x)
            since += 1
            slope = space.slope(x, [*(gradient[:-1] * damping * moves), gradient[-1]]) * unit
            first = self.betas[0] * first + (1 - self.betas[0]) * slope
            second = self.betas[1] * second + (1 - self.betas[1]) * slope**2
            debiased = first / (1 - self.betas[0] ** since), second / (1 - self.betas[1] ** since)
            size = rate * math.log(rope.scale(space.length)) * (1 + math.cos(math.pi * step / self.steps)) / 2
            move = debiased[0] / (np.sqrt(debiased[1]) + 1e-12)
            x = np.clip(x - size * unit * move, lower, upper)
        if len(space.start_tokens) > 1:
            yield Ask([space.at(np.append(best[1][:-1], start)) for start in range(len(space.start_tokens))])
