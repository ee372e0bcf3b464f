"""The inputs and the result of a search."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from longrope.data.weighted_text import WeightedText
from longrope.scaling import Extension
from longrope.search.budget import Budget
from longrope.search.loop import SearchOutcome
from longrope.search.protocol import Objective


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Args:
        extension: Extension with the winning factors.
        held_out: Held-out loss in nats by name of the factors, best first. These losses choose the winner.
        outcomes: Outcome of the search of each seed.
    """

    extension: Extension
    held_out: Mapping[str, float]
    outcomes: tuple[SearchOutcome, ...]


@dataclass(frozen=True)
class SearchObjectives:
    """The objective that a search minimises, and the one that chooses its winner.

    Args:
        search: Objective to minimise.
        held_out: The same objective on samples that the search does not see.
        hashes: Fingerprints of both data sets (``search``, ``held_out``), for the journals.
    """

    search: Objective
    held_out: Objective
    hashes: Mapping[str, str]

    @classmethod
    def of(
        cls,
        make_objective: Callable[[Sequence[WeightedText]], Objective],
        search: Sequence[WeightedText],
        held_out: Sequence[WeightedText],
    ) -> SearchObjectives:
        """Return the objectives of samples.

        Args:
            make_objective: Function that makes the objective of samples: on a model in this process, or on workers.
            search: Samples to minimise the mean loss of.
            held_out: Samples of other documents.
        """
        hashes = {"search": data_hash(search), "held_out": data_hash(held_out)}
        return cls(make_objective(search), make_objective(held_out), hashes)


@dataclass(frozen=True)
class SearchRun:
    """How a search is run.

    Args:
        seeds: Seeds; one search for each.
        budget: Limits of each search.
        batch_size: Most (candidate, sample) pairs in one forward pass.
        racing: Whether to drop candidates that are clearly worse than the best after some of the samples.
        existing: What to do with a run that the folder holds: ``refuse``, ``resume`` or ``overwrite``.
        settings: Other settings that decide the losses (model name, dtype …), for the journals.
        provenance: Other facts to keep with the factors (command, data …).
    """

    seeds: Sequence[int] = (0,)
    budget: Budget = field(default_factory=Budget)
    batch_size: int = 1
    racing: bool = False
    existing: str = "refuse"
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


def data_hash(samples: Sequence[WeightedText]) -> str:
    """Return a fingerprint of token ids, weights and positions."""
    arrays = [array for text in samples for array in (text.tokens, text.weights, text.positions) if array is not None]
    return digest(*arrays)


def digest(*arrays: np.ndarray) -> str:
    """Return a fingerprint of arrays."""
    sha256 = hashlib.sha256()
    for array in arrays:
        sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()[:16]
