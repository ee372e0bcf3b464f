"""The objectives of a search, with frozen contexts if the search that is resumed began with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longrope.data.weighted_text import WeightedText
from longrope.errors import LongRopeError
from longrope.search.protocol import Batch, CandidateLoss, ContextObjective, Objective, context_tokens
from longrope.search.run import SearchObjectives
from longrope.storage.jsonl import read_settings


@dataclass(frozen=True)
class FullPasses:
    """An objective without frozen contexts.

    Args:
        objective: Objective that may have them.
    """

    objective: Objective

    @property
    def tokens(self) -> Sequence[int]:
        """Length of each sample in tokens."""
        return self.objective.tokens

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """Yield the index of each batch and its losses."""
        return self.objective.evaluate(batches, gradient=gradient)


def objectives_as_before(
    make_objective: Callable[[Sequence[WeightedText]], Objective],
    samples: Mapping[str, Sequence[WeightedText]],
    resumed: Path | None,
) -> SearchObjectives:
    """Return the objectives of samples, with frozen contexts if there is room, or if the resumed search has them.

    Args:
        make_objective: Function that makes the objective of samples.
        samples: Samples of the splits ``search`` and ``held_out``.
        resumed: Folder of the search that may be resumed; None for a new one.

    Raises:
        LongRopeError: If the resumed search has frozen contexts, and now there is no room for them, or workers run it.
    """
    objectives = SearchObjectives.of(make_objective, samples["search"], samples["held_out"])
    if resumed is None:
        return objectives
    in_contexts = read_settings(resumed / "search-0.jsonl").get("frozen_contexts")
    search = _as_before(objectives.search, resumed, in_contexts=in_contexts)
    in_contexts = in_contexts and read_settings(resumed / "held-out.jsonl").get("held_out_contexts")
    return replace(
        objectives, search=search, held_out=_as_before(objectives.held_out, resumed, in_contexts=in_contexts)
    )


def _as_before(objective: Objective, resumed: Path, *, in_contexts: bool | None) -> Objective:
    """Return an objective of a search that began with or without frozen contexts; None if it did not say."""
    if in_contexts and not isinstance(objective, ContextObjective):
        raise LongRopeError(
            f"{resumed}: this search began with frozen contexts, which workers do not have. Resume it with workers = 1 "
            "or begin again in another folder."
        )
    if in_contexts and not context_tokens(objective):
        raise LongRopeError(
            f"{resumed}: this search began with frozen contexts, and now has no room for them (the line above says how "
            "much they take). Free memory and resume it, or begin again in another folder."
        )
    return FullPasses(objective) if in_contexts is False else objective
