"""The default method: the best of some closed forms, then the gradient from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from longrope.scaling import Scaling
from longrope.search.evolution import sized
from longrope.search.gradient import STARTS, Gradient
from longrope.search.protocol import CandidateBatch, Proposals
from longrope.search.space import Space

RAMPS = ((10, 0.3, 1.15), (10, 1, 1.0), (32, 0.3, 1.15), (3, 0.3, 1.15), (3, 1, 1.0))


@dataclass(frozen=True)
class Auto:
    """Closed forms first: the starts, and ramps of log factors between two numbers of turns within L0.

    Args:
        ramps: how many of `RAMPS` are tried.
        gradient: what goes on from the best of them.
    """

    ramps: int = len(RAMPS)
    gradient: Gradient = field(default_factory=lambda: Gradient(steps=40))
    shaped: ClassVar[bool] = True
    ceiling: ClassVar[float] = 2.0
    parametrization: ClassVar[str] = "free"
    starts: ClassVar[tuple[str, ...]] = ("yarn", "heuristic")

    def sized(self, population: int) -> Auto:
        """The same with another number of gradient steps."""
        return replace(self, gradient=replace(self.gradient, steps=sized(population)))

    def within(self, passes: int, items: int) -> Auto:
        """As many ramps as a quarter of that many forward passes over one item pay for, and steps for the rest."""
        count = min(len(RAMPS), max(1, passes // (4 * items) - STARTS))
        return replace(self, ramps=count, gradient=self.gradient.within(passes - count * items, items))

    def passes(self, items: int) -> int:
        """About how many forward passes over one item it costs."""
        return self.ramps * items + self.gradient.passes(items)

    def converse(self, space: Space, starts: Sequence[Scaling], rng: np.random.Generator) -> Proposals:
        """All closed forms, then one candidate a step; arguments as for `Paper.converse`."""
        candidates = [space.at(space.coordinates(start)) for start in [*starts, *ramps(space)[: self.ramps]]]
        answers = yield CandidateBatch(candidates)
        best = min(range(len(answers)), key=lambda i: answers[i].loss)
        yield from self.gradient.descend(space, space.coordinates(candidates[best]))


def ramps(space: Space) -> list[Scaling]:
    """Closed forms like YaRN's, but with a straight ramp of the log factor, and other ends.

    Factors are 1 for pairs that turn more often within L0 than the first number of `RAMPS` says, and its third
    number times s for those that turn less often than the second.
    """
    rope, s = space.relative, space.scale
    turns = np.log(rope.original_length / rope.wavelengths)
    found = []
    for first, last, top in RAMPS:
        height = np.clip((np.log(first) - turns) / (np.log(first) - np.log(last)), 0, 1)
        found.append(space.scaling(np.minimum((top * s) ** height, space.largest).tolist()))
    return found
