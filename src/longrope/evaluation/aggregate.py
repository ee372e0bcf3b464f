"""From measured cells to tables: means over documents, how sure they are, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np

from longrope.evaluation.measurements import Measurement, edges
from longrope.evaluation.perplexity import perplexity_of_documents
from longrope.evaluation.runner import Candidate, SampleStore
from longrope.evaluation.statistics import mean_error, paired

AGAINST = ("original", "yarn")  # the rows that all others are compared with
Table = dict[str, Any]  # JSON values


def _numbers(values: Sequence[float | None]) -> list[float]:
    """With NaN for what was not finite."""
    return [math.nan if value is None else float(value) for value in values]


def perplexities(cells: SampleStore, row: Candidate, texts: Mapping[str, Measurement]) -> list[Table]:
    """`Perplexity` by corpus and length."""
    found = []
    for corpus, part in texts.items():
        values = cells.of(row, part)
        for length in values[0]["lengths"]:
            losses = _numbers([value["lengths"][length] for value in values])
            found.append({"corpus": corpus, **asdict(perplexity_of_documents(losses, int(length)))})
    return found


def differences(perplexity: Mapping[str, Sequence[Table]]) -> dict[str, list[Table]]:
    """`Difference` of each row from those of `AGAINST`, on the same documents."""
    return {
        name: [
            {"corpus": ours["corpus"], "length": ours["length"], "against": other}
            | asdict(paired(ours["losses"], theirs["losses"]))
            for other in AGAINST
            if other in perplexity and other != name
            for ours, theirs in zip(cells, perplexity[other], strict=True)
        ]
        for name, cells in perplexity.items()
    }


def positions(cells: SampleStore, row: Candidate, texts: Mapping[str, Measurement], longest: int) -> list[Table]:
    """Mean loss in nats of the tokens from ``start`` up to and without ``end`` of the longest length, by corpus."""
    borders, found = edges(longest).tolist(), []
    for corpus, part in texts.items():
        values = cells.of(row, part)
        for i, (start, end) in enumerate(pairwise(borders)):
            loss, error = mean_error(_numbers([value["positions"][i] for value in values]))
            found.append({"corpus": corpus, "start": start, "end": end, "loss": loss, "standard_error": error})
    return found


def sliding(cells: SampleStore, row: Candidate, slides: Mapping[tuple[str, int, int], Measurement]) -> list[Table]:
    """`Perplexity` in overlapping windows by corpus, length of a window and stride."""
    return [
        {"corpus": corpus, "stride": stride} | asdict(perplexity_of_documents(_numbers(cells.of(row, part)), length))
        for (corpus, length, stride), part in slides.items()
    ]


def key_tokens(
    cells: SampleStore,
    row: Candidate,
    texts: Mapping[str, Measurement],
    chosen: Mapping[str, Mapping[int, Sequence[int]]],
    longest: int,
    by: str | None,
) -> list[Table]:
    """Perplexity of the key tokens alone, all documents' tokens together, and which share of all tokens they are."""
    found = []
    for corpus, part in texts.items():
        counts = [len(keys) for keys in chosen[corpus].values()]
        losses = _numbers([value["key"] for value in cells.of(row, part)])
        total = sum(count * loss for count, loss in zip(counts, losses, strict=True) if count)
        value = float(np.exp(total / sum(counts))) if any(counts) else math.nan
        share = sum(counts) / (len(counts) * (longest - 1))
        cell = {"corpus": corpus, "length": longest, "perplexity": value, "share": share, "chosen_by": by}
        found.append(cell)
    return found


def retrieval(cells: SampleStore, row: Candidate, tasks: Mapping[tuple[str, int], Measurement]) -> list[Table]:
    """Scores by task, length and depth, with their standard errors, and how often the right one was chosen."""
    found = []
    for (task, length), part in tasks.items():
        values = cells.of(row, part)
        for depth in dict.fromkeys(value["depth"] for value in values):
            here = [value for value in values if value["depth"] == depth]
            score, error = mean_error([value["score"] for value in here])
            chosen = [value["choice"] for value in here if value["choice"] is not None]
            found.append(
                {
                    "task": task,
                    "length": length,
                    "depth": depth,
                    "score": score,
                    "standard_error": error,
                    "choice": sum(chosen) / len(chosen) if chosen else None,
                    "chance": 1 / here[0]["choices"] if chosen else None,
                    "trials": len(here),
                }
            )
    return found


def short_context(perplexity: Mapping[str, Sequence[Table]], original: int) -> dict[str, float]:
    """Percent of perplexity that each row lost at L0 against the original model, on the first corpus."""
    at: dict[str, float] = {}
    for name, cells in perplexity.items():
        here = [cell["perplexity"] for cell in cells if cell["length"] == original]
        if here and here[0] is not None and math.isfinite(here[0]):
            at[name] = here[0]
    before = at.pop("original", None)
    return {} if before is None else {name: 100 * (now / before - 1) for name, now in at.items()}
