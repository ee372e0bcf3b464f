"""Gradient search: Adam on the coordinates of a space, with the loss differentiated through cos and sin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from longrope.scaling import Scaling
from longrope.search.evaluator import samples_per_step
from longrope.search.method import Method, check_population
from longrope.search.protocol import BACKWARD_COST, CandidateBatch, Proposals
from longrope.search.space import Space

EVERY = 5  # steps from one comparison on all samples to the next
STARTS = 2  # number of starts that costs are estimated with


@dataclass(frozen=True)
class Gradient(Method):
    """Adam (Kingma and Ba 2015) from the best start, with a step size that falls as a cosine.

    The gradient of a step is that of a quarter of the samples in frozen contexts of the best candidate; of one whole
    sample where the objective has no frozen contexts.

    The loss is rough in the fast pairs: at a distance of d tokens a change of log λ turns pair i by d·inv_freq_i. So
    each pair's step is that of its log factor times min(1, 1 / (reach·inv_freq_i)). No step turns a pair further, at
    a distance of ``reach`` tokens, than it changes the log factor of the slow ones.

    Steps are noisy. So a candidate that is evaluated on all samples is the mean of the last `EVERY` steps. If it is
    worse than the best one, the search goes back to that one with half the step size (a trust region).

    Args:
        steps: Number of steps.
        rate: First step size in log factors, as a part of ln s / sqrt(steps).
        betas: Decay rates of Adam.
        reach: Distance in tokens up to which steps of fast pairs are damped.
        frozen: Turns within L0 above which pairs keep their factors (free parametrization only). None freezes none.
    """

    steps: int = 60
    rate: float = 0.2
    betas: tuple[float, float] = (0.9, 0.99)
    reach: float = 8.0
    frozen: float | None = None
    uses_gradient: ClassVar[bool] = True
    uses_contexts: ClassVar[bool] = True
    draws: ClassVar[bool] = False

    def with_population(self, population: int) -> Gradient:
        """Return the method with another number of steps."""
        return replace(self, steps=check_population(population))

    def within(self, passes: int, samples: int, context_cost: float = 0.0) -> Gradient:
        """Return the method with the steps that the passes pay for, after starts and comparisons."""
        step = _step_cost(samples, context_cost)
        rounds, rest = divmod(passes - STARTS * samples, step * EVERY + samples)
        last_round = max(0, min(EVERY, (rest - samples) // step))
        return replace(self, steps=max(1, int(EVERY * rounds + last_round)))

    def passes(self, samples: int, context_cost: float = 0.0) -> int:
        """Estimate the cost in forward passes over one sample."""
        steps = self.steps * _step_cost(samples, context_cost)
        return STARTS * samples + math.ceil(round(steps, 6)) + math.ceil(self.steps / EVERY) * samples

    def start_cost(self, context_cost: float = 0.0) -> float:
        """Return 1: each start gets a full pass."""
        return 1.0

    def gradient_steps(self, samples: int, context_cost: float = 0.0) -> int:
        """Return the number of forward and backward passes over one sample, those in contexts as parts of one."""
        return math.ceil(self.steps * _step_cost(samples, context_cost) / BACKWARD_COST)

    def propose(self, space: Space, starts: Sequence[Scaling], rng: np.random.Generator) -> Proposals:
        """Yield the starts, then one candidate per step; arguments as for `Method.propose`."""
        points = [space.coordinates(start) for start in starts]
        losses = yield CandidateBatch([space.candidate(point) for point in points])
        best = min(range(len(losses)), key=lambda i: losses[i].loss)
        yield from self.descend(space, points[best], losses[best].loss)

    def descend(self, space: Space, x: np.ndarray, loss: float, state: Mapping[str, Any] | None = None) -> Proposals:
        """Yield one candidate per step; in the end, the best one with every number of start tokens, if searched.

        Args:
            space: Space of the candidates.
            x: First coordinates, ``(coordinates,)``.
            loss: Mean loss of the first candidate over all samples.
            state: More values for the state of every batch.
        """
        lower, upper = space.bounds
        weights, unit = self._weights(space), self._unit(space, x)
        adam, rate = _Adam(len(x), self.betas), self.rate * math.log(space.scale)
        best, recent, facts = (loss, x), [], dict(state or {})
        for step in range(self.steps):
            state = {**facts, "step": step, "x": x.tolist(), "rate": rate, **adam.state}
            reference = space.candidate(best[1])
            (answer,) = yield CandidateBatch([space.candidate(x)], state, gradient_step=step, reference=reference)
            gradient = np.array(answer.gradient)
            if math.isfinite(answer.loss) and np.isfinite(gradient).all():
                move = adam.move(space.coordinate_gradient(x, (gradient * weights).tolist()) * unit)
                size = rate / math.sqrt(self.steps) * (1 + math.cos(math.pi * step / self.steps)) / 2
                x = np.clip(x - size * unit * move, lower, upper)
                recent.append(x)
            else:  # from the best again, with half the step size
                x, rate, adam = best[1], rate / 2, _Adam(len(x), self.betas)
            if (step + 1) % EVERY == 0 or step + 1 == self.steps:
                middle = np.mean(recent or [x], axis=0)
                candidate, recent = space.candidate(middle), []
                (answer,) = yield CandidateBatch([candidate], state, reference=candidate)
                if answer.loss < best[0]:
                    best = (answer.loss, middle)
                else:
                    x, rate = best[1], rate / 2
        if len(space.start_tokens) > 1:
            indices = range(len(space.start_tokens))
            yield CandidateBatch([space.candidate(np.append(best[1][:-1], index)) for index in indices])

    def _damping(self, space: Space) -> np.ndarray:
        return np.minimum(1.0, 1.0 / (self.reach * space.relative.inv_freq))

    def _weights(self, space: Space) -> np.ndarray:
        """Return the weight of each component of the gradient, ``(dim // 2 + 1,)``."""
        turns = space.relative.original_length / space.relative.wavelengths
        moves = np.ones(space.pairs) if self.frozen is None else turns <= self.frozen
        return np.append(self._damping(space) * moves, 1.0)

    def _unit(self, space: Space, x: np.ndarray) -> np.ndarray:
        """Return the step of each coordinate that moves no pair further than its damping allows, ``(coordinates,)``."""
        size, unit = len(space.coordinate_map.lower), np.zeros(len(x))
        furthest = (np.abs(space.coordinate_map.jacobian(x[:size])) / self._damping(space)[:, None]).max(axis=0)
        unit[:size] = np.where(furthest > 1e-6, 1 / furthest.clip(min=1e-6), space.coordinate_map.unit)
        if space.search_attention:
            unit[size] = 0.25
        return unit


def _step_cost(samples: int, context_cost: float) -> float:
    """Return the forward passes over one sample that a step costs."""
    return BACKWARD_COST * (samples_per_step(samples) * context_cost or 1)


@dataclass
class _Adam:
    """Mean and mean square of the gradients so far."""

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

    def move(self, gradient: np.ndarray) -> np.ndarray:
        """Take a gradient and return the direction to move against, about 1 in each coordinate."""
        self.count += 1
        self.first = self.betas[0] * self.first + (1 - self.betas[0]) * gradient
        self.second = self.betas[1] * self.second + (1 - self.betas[1]) * gradient**2
        mean = self.first / (1 - self.betas[0] ** self.count)
        square = self.second / (1 - self.betas[1] ** self.count)
        return mean / (np.sqrt(square) + 1e-12)
