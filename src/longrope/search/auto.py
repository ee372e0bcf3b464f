"""The default method: compare closed forms, then follow the gradient from the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from longrope.scaling import Scaling
from longrope.search.gradient import STARTS, Gradient
from longrope.search.method import Method
from longrope.search.protocol import CandidateBatch, Proposals
from longrope.search.space import Space

RAMPS = ((10, 0.3, 1.15), (10, 1, 1.0), (32, 0.3, 1.15), (3, 0.3, 1.15), (3, 1, 1.0))


@dataclass(frozen=True)
class Auto(Method):
    """Closed forms first: the starts, and ramps of log factors between two numbers of turns within L0.

    Args:
        ramps: Number of ramps that are tried, from the first of `RAMPS` on.
        gradient: Method that goes on from the best closed form.
    """

    ramps: int = len(RAMPS)
    gradient: Gradient = field(default_factory=lambda: Gradient(steps=40))
    uses_gradient: ClassVar[bool] = True

    def with_population(self, population: int) -> Auto:
        """Return the method with another number of gradient steps."""
        return replace(self, gradient=self.gradient.with_population(population))

    def within(self, passes: int, samples: int) -> Auto:
        """Return the method with ramps for a quarter of the passes, and gradient steps for the rest."""
        ramps = min(len(RAMPS), max(1, passes // (4 * samples) - STARTS))
        return replace(self, ramps=ramps, gradient=self.gradient.within(passes - ramps * samples, samples))

    def passes(self, samples: int) -> int:
        """Estimate the cost in forward passes over one sample."""
        return self.ramps * samples + self.gradient.passes(samples)

    def gradient_steps(self, samples: int) -> int:
        """Return the number of forward and backward passes over one sample."""
        return self.gradient.gradient_steps(samples)

    def propose(self, space: Space, starts: Sequence[Scaling], rng: np.random.Generator) -> Proposals:
        """Yield all closed forms, then one candidate per step; arguments as for `Method.propose`."""
        closed_forms = [*starts, *ramps(space)[: self.ramps]]
        candidates = [space.candidate(space.coordinates(scaling)) for scaling in closed_forms]
        losses = yield CandidateBatch(candidates)
        best = min(range(len(losses)), key=lambda i: losses[i].loss)
        yield from self.gradient.descend(space, space.coordinates(candidates[best]))


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
        scalings.append(space.scaling(np.minimum((top * s) ** height, space.largest).tolist()))
    return scalings
