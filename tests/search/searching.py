"""A rope, its spaces and an objective in milliseconds: the squared distance of log factors from a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from longrope.rope import Rope, Scaling
from longrope.schemes import scheme
from longrope.search.evolution import Paper, Simple
from longrope.search.journal import Journal
from longrope.search.run import Budget, Outcome, Progress, search
from longrope.search.space import Space

ROPE, LENGTH = Rope(dim=16, base=10000.0, original_length=256), 2048
STARTS = [scheme(name, ROPE, LENGTH) for name in ("pi", "ntk", "yarn")]
# closer to PI at the end than YaRN, and shifted
TARGET = np.minimum(1 + 7 * np.linspace(0, 1, 8) ** 1.5, 7.5)


def quadratic(scaling: Scaling) -> float:
    distance = np.log(scaling.factors) - np.log(TARGET)
    return float((distance**2).mean()) + 0.001 * abs(scaling.start_tokens - 8)


def run_search(
    path: Path,
    method: Paper | Simple,
    *,
    objective: Callable[[Scaling], float] = quadratic,
    seed: int = 0,
    start_tokens: Sequence[int] = (0,),
    resume: bool = False,
    watch: Callable[[Progress], None] | None = None,
    budget: int | None = None,
    seconds: float | None = None,
    patience: int | None = None,
) -> Outcome:
    rng = np.random.default_rng(seed)
    space = Space(ROPE, LENGTH, start_tokens=tuple(start_tokens), ceiling=method.ceiling)
    journal = Journal(path, {"seed": seed}, resume=resume)
    try:
        candidates = method.candidates(space, STARTS, rng)
        return search(objective, candidates, rng, journal, budget=Budget(budget, seconds, patience), watch=watch)
    finally:
        journal.close()
