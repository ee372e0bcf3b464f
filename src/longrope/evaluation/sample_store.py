"""Measured samples of every candidate, in a journal from which an evaluation resumes after any crash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longrope.evaluation.candidate import Candidate
from longrope.evaluation.measurement import SampleSet
from longrope.storage.atomic import replace_non_finite
from longrope.storage.jsonl import JsonlFile

JOURNAL = "cells.jsonl"


class SampleStore:
    """The value of every sample by candidate, sample set and index.

    Args:
        journal: File that keeps the values; None keeps nothing on disk.
        lines: Lines of another process's journal, for a process that has none.

    Raises:
        LongRopeError: If a line of the journal does not hold a sample.
    """

    def __init__(self, journal: JsonlFile | None = None, lines: Sequence[Mapping[str, Any]] = ()) -> None:
        self._values: dict[tuple[str, str], dict[int, Any]] = {}
        self._journal = journal
        try:
            for line in journal.lines if journal else lines:
                self._values.setdefault((line["row"], line["part"]), {})[int(line["cell"])] = line["value"]
        except (KeyError, TypeError, ValueError):
            assert journal is not None
            raise journal.damaged() from None

    def samples(self, candidate: Candidate, samples: SampleSet) -> list[Any]:
        """Return a candidate's values in order, once none is missing."""
        values = self._found(candidate, samples)
        return [values[index] for index in range(samples.count)]

    def missing(self, candidate: Candidate, samples: SampleSet) -> list[int]:
        """Return the indices of the samples that are not measured yet."""
        values = self._found(candidate, samples)
        return [index for index in range(samples.count) if index not in values]

    def add(self, candidate: Candidate, samples: SampleSet, index: int, value: Any) -> None:
        """Keep a value; numbers that are not finite become None."""
        value, key = replace_non_finite(value), candidate.at(samples.length).key
        self._values.setdefault((key, samples.name), {})[index] = value
        if self._journal is not None:
            line = {"row": key, "part": samples.name, "cell": index, "value": value}
            self._journal.append(line)

    def _found(self, candidate: Candidate, samples: SampleSet) -> dict[int, Any]:
        """Return the values by index, also those that an earlier version kept under the candidate's own key."""
        keys = (candidate.key, candidate.at(samples.length).key)
        return {index: value for key in keys for index, value in self._values.get((key, samples.name), {}).items()}
