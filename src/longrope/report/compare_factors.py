"""Compare factors without measuring: a table and a chart of λ, and how far apart they turn at L."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from longrope.errors import LongRopeError
from longrope.evaluation.candidate import Candidate
from longrope.evaluation.figure import MISSING, Column, Figure, fixed, integer
from longrope.report.factor_figures import factors_figure
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling, check_rope
from longrope.yarn_fit import distances

DISTANCE_SAYS = (
    "How many turns each set is ahead of the first one (behind it: below 0) for two tokens that are L apart. A whole "
    "turn is indistinguishable at that one distance and not at others, so read the size: far below one turn in every "
    "pair, two sets are the same to the model."
)


@dataclass(frozen=True)
class Compared:
    """Sets of factors of one model.

    Args:
        rope: Geometry of the model, without the factors of its own checkpoint.
        scalings: Sets by name, each relative to that geometry; the first one is what the others are compared with.
        length: L in tokens, at which distances are taken.
    """

    rope: Rope
    scalings: Mapping[str, Scaling]
    length: int

    def turns(self, name: str) -> np.ndarray:
        """Return by how many turns a set is ahead of the first one at L, ``(dim // 2,)``."""
        first = next(iter(self.scalings.values()))
        gap = self.scalings[name].inv_freq(self.rope) - first.inv_freq(self.rope)
        return self.length * gap / (2 * np.pi)


def compared(
    sources: Mapping[str, Scaling | Extension], *, rope: Rope | None = None, length: int | None = None
) -> Compared:
    """Return factors as sets of one model that can be compared.

    An extension gives its long set, and a short one that is neither the same nor the original RoPE.

    Args:
        sources: Factors by name.
        rope: Geometry of the model; None takes that of the first extension.
        length: L in tokens; None takes the longest length of the factors.

    Raises:
        LongRopeError: If no geometry or length is known, or factors are of another model.
    """
    sources = {name: source.total if isinstance(source, Extension) else source for name, source in sources.items()}
    rope = rope or next((source.rope for source in sources.values() if isinstance(source, Extension)), None)
    if rope is None:
        raise LongRopeError("model = None: these files hold no model's geometry. Name the model.")
    for name, source in sources.items():
        geometry = source.rope if isinstance(source, Extension) else rope
        if (geometry.dim, geometry.base) != (rope.dim, rope.base):
            raise LongRopeError(
                f"{name}: factors for dim {geometry.dim} and rope_theta {geometry.base:g}, but the others are for dim "
                f"{rope.dim} and {rope.base:g}. Compare factors of one model."
            )
        if isinstance(source, Scaling):
            check_rope(source, rope.plain, name)
            sources[name] = source.times(rope.factors) if rope.factors else source
    length = length or max((source.length or 0 for source in sources.values()), default=0)
    if not length:
        raise LongRopeError("length = None: these files name no length. Give the length in tokens.")
    sets = {
        name + suffix: scaling
        for name, source in sources.items()
        for suffix, scaling in Candidate(scaling=source).scalings.items()
    }
    if len(sets) < 2:
        raise LongRopeError(f"factors = {', '.join(sets)}: one set alone. Give two files or more.")
    return Compared(rope.plain, sets, length)


def distance_figure(compared: Compared) -> Figure:
    """Return the distance of every set from the first one, in turns at L."""
    turns = {name: compared.turns(name) for name in compared.scalings}
    first, *others = turns
    columns = (Column("pair"), *(Column(name, fixed(3, sign="+")) for name in others))
    table = [[str(pair), *(float(turns[name][pair]) for name in others)] for pair in range(compared.rope.dim // 2)]
    title = f"Turns ahead of {first} at {compared.length:,} tokens"
    return Figure("turns", "found", title, DISTANCE_SAYS, columns, table, terminal="columns")


def distances_from_first(compared: Compared) -> dict[str, dict[str, float]]:
    """Return the distances of every set from the first one, as `longrope.yarn_fit.distances` names them."""
    first = replace(next(iter(compared.scalings.values())), length=compared.length)
    return {name: distances(compared.rope, first, scaling) for name, scaling in compared.scalings.items()}


def summary_figure(compared: Compared) -> Figure:
    """Return every set in a line: its length, attention factor and distance from the first one."""
    rows = []
    for name, distance in distances_from_first(compared).items():
        scaling, farthest = compared.scalings[name], int(np.abs(compared.turns(name)).argmax())
        pair = str(farthest) if distance["largest_turns"] > 0 else MISSING
        turns = (distance["largest_turns"], pair, distance["rms_turns"], distance["rms_log"])
        rows.append([name, scaling.length, scaling.attention_factor, *turns])
    columns = (
        *(Column("factors"), Column("made for", integer), Column("attention factor", fixed(4))),
        *(Column("most turns apart", fixed(3)), Column("at pair"), Column("rms of turns", fixed(3))),
        Column("rms of log λ", fixed(3)),
    )
    says = f"Distances are from {next(iter(compared.scalings))}; turns are of tokens {compared.length:,} apart."
    return Figure("summary", "found", "Distance between the factors", says, columns, rows)


def comparison_figures(compared: Compared) -> list[Figure]:
    """Return the figures of a comparison, summary first."""
    factors = factors_figure(compared.rope, compared.scalings)
    return [summary_figure(compared), factors, distance_figure(compared)]
