"""Evaluations whose samples are made up, so that tests can say what they sum up to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import families
import numpy as np

from longrope.evaluation.candidate import Candidate
from longrope.evaluation.measurement import Corpus, EvalSpec, SampleSet
from longrope.evaluation.runner import EvalContext
from longrope.rope import Rope

ROPE = Rope(dim=8, base=1e4, original_length=8)


def sample_set(name: str, values: Sequence[Any]) -> SampleSet:
    """Return a sample set that measures these values."""
    return SampleSet(name, len(values), 1, lambda _, samples: ((index, values[index]) for index in samples))


def measured(spec: EvalSpec, samples: SampleSet, *names: str) -> EvalContext:
    """Return an evaluation of one corpus, ``books``, of which these samples are measured and are its text samples."""
    corpus = Corpus("books", np.zeros((samples.count, max(spec.lengths)), dtype=np.int64), ("a",) * samples.count)
    candidates = {name: Candidate(name) for name in names or ("original",)}
    evaluation = EvalContext(candidates, [corpus], spec, ROPE, lambda _: (families.build("llama"), None))  # pyright: ignore
    evaluation.__dict__["texts"] = {"books": samples}
    evaluation.measure([samples])
    return evaluation
