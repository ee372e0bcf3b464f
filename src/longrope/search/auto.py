"""The default method: rank closed forms, then follow the gradient from the best of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from longrope.scaling import Scaling
from longrope.search.gradient import STARTS, Gradient
from longrope.search.leaders import LEADERS, evaluate_leaders
from longrope.search.method import Method
from longrope.search.protocol import Proposals
from longrope.search.space import Space

RAMPS = ((10, 0.3, 1.15), (10, 1, 1.0), (32, 0.3, 1.15), (3, 0.3, 1.15), (3, 1, 1.0))


@dataclass(frozen=True)
class Auto(Method):
    """Closed forms first: the starts, and ramps of log factors between two numbers of turns within L0.

    The first one gets a full pass. The others are ranked in its frozen contexts, and the leaders get full passes.

    Args:
        ramps: Number of ramps that are tried, from the first of `RAMPS` on.
        gradient: Method that goes on from the best closed form.
    """

    ramps: int = len(RAMPS)
    gradient: Gradient = field(default_factory=lambda: Gradient(steps=40))
    schemes: ClassVar[tuple[str, ...]] = ("yarn", "heuristic", "mrrope_pro", "mrrope_uni", "bm", "tailspline")
    uses_gradient: ClassVar[bool] = True
    uses_contexts: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    without_gradient: ClassVar[str | None] = "cma"

    def with_population(self, population: int) -> Auto:
        """Return the method with another number of gradient steps."""
        return replace(self, gradient=self.gradient.with_population(population))

    def within(self, passes: int, samples: int, context_cost: float = 0.0) -> Auto:
        """Return the method with ramps for a quarter of the passes, and gradient steps for the rest."""
        ramps = min(len(RAMPS), max(1, passes // (4 * samples) - STARTS))
        fitted = replace(self, ramps=ramps)
        left = passes - fitted._closed_form_passes(samples, context_cost)
        return replace(fitted, gradient=self.gradient.within(left, samples, context_cost))

    def passes(self, samples: int, context_cost: float = 0.0) -> int:
        """Estimate the cost in forward passes over one sample."""
        return self._closed_form_passes(samples, context_cost) + self.gradient.passes(samples, context_cost)

    def start_cost(self, context_cost: float = 0.0) -> float:
        """Return the cost of one more start, which is ranked in frozen contexts where there are any."""
        return context_cost or 1.0

    def gradient_steps(self, samples: int, context_cost: float = 0.0) -> int:
        """Return the number of forward and backward passes over one sample."""
        return self.gradient.gradient_steps(samples, context_cost)

    def _closed_form_passes(self, samples: int, context_cost: float) -> int:
        """Return the passes of the closed forms beside the `STARTS` that the gradient method counts."""
        count = len(self.schemes) + self.ramps
        full = 1 + min(LEADERS, count - 1) + (count - 1) * context_cost if context_cost else count
        return math.ceil(round((full - STARTS) * samples, 6))

    def propose(self, space: Space, starts: Sequence[Scaling], rng: np.random.Generator) -> Proposals:
        """Yield all closed forms, then one candidate per step; arguments as for `Method.propose`."""
        closed_forms = [*starts, *ramps(space)[: self.ramps]]
        points = [space.coordinates(scaling) for scaling in closed_forms]
        candidates = [space.candidate(point) for point in points]
        losses = yield from evaluate_leaders(candidates)
        best = min(losses, key=losses.__getitem__)
        number = candidates.index(best)
        state = {"closed_form": closed_forms[number].scheme}
        yield from self.gradient.descend(space, points[number], losses[best], state)


def ramps(space: Space) -> list[Scaling]:
    """Return closed forms like YaRN's, but with a straight ramp of the log factor and other ends.

    Each row of `RAMPS` is one closed form. Pairs that turn more often within L0 than its first number have factor 1.
    Pairs that turn less often than its second number have its third number times s.
    """
    rope, s = space.relative, space.scale
    log_turns = np.log(rope.original_length / rope.wavelengths)
    scalings = []
    for first, last, top in RAMPS:
        height = np.clip((np.log(first) - log_turns) / (np.log(first) - np.log(last)), 0, 1)
        scaling = space.scaling(np.minimum((top * s) ** height, space.largest).tolist())
        scalings.append(replace(scaling, scheme=f"ramp({first:g}, {last:g}, {top:g})"))
    return scalings
