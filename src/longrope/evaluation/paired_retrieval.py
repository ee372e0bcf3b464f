"""Measurement: paired differences of retrieval from the original model and from YaRN, on the same prompts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from longrope.evaluation.differences import AGAINST
from longrope.evaluation.figure import MISSING, Column, Figure, Number, fixed, integer
from longrope.evaluation.labelled import LabelledResults
from longrope.evaluation.measurement import Measurement, no_samples
from longrope.evaluation.records import Record, Value
from longrope.evaluation.retrieval import RETRIEVAL
from longrope.evaluation.retrieval_score import RetrievalScore
from longrope.evaluation.statistics import sign_test

if TYPE_CHECKING:
    from longrope.evaluation.runner import EvalContext

CLEAR = 0.05  # p below which a difference is called one
SAYS = (
    "How many percentage points more of the hidden answers the row finds than the one it is compared with, over all "
    "tasks of a length together. Both read the same prompts, so only texts about which one of them answers better "
    "count, each once. p is the probability of a count at least as one-sided if neither were better (exact McNemar "
    f"test); below {CLEAR:g} the page calls it a difference."
)


class RetrievalDifference(Record):
    """Retrieval of a candidate against another's on the same prompts, all tasks of a length together.

    Args:
        length: Tokens of each text.
        against: Name of the other candidate.
        points: Mean score minus the other's, in percentage points (above 0: better).
        trials: Number of prompts.
        texts: Number of texts, where several prompts share one.
        wins: Texts, or prompts of a text each, that the candidate answers better.
        losses: Texts that the candidate answers worse.
        p: Probability of a count at least as one-sided if neither were better (exact McNemar test).
    """

    length: int
    against: str
    points: Value
    trials: int
    texts: int | None = None
    wins: int
    losses: int
    p: Value = math.nan

    @property
    def clear(self) -> bool:
        """Whether chance is an unlikely reason of the difference, and more texts than not are on its side."""
        return self.p < CLEAR and (self.points > 0) == (self.wins > self.losses)


def paired_retrieval(
    records: Sequence[RetrievalScore], reference: Sequence[RetrievalScore], *, length: int, against: str
) -> RetrievalDifference | None:
    """Return the paired difference of two candidates at one length; None without the scores of the same prompts.

    If a score is not finite, nothing is counted, and points and p are NaN.

    Args:
        records: Scores of the candidate.
        reference: Scores of the other candidate.
        length: Tokens of each text.
        against: Name of the other candidate.
    """
    rows = [record for record in records if record.length == length and record.scores]
    scores = {(row.task, row.depth): row.scores for row in rows}
    others = {(row.task, row.depth): row.scores for row in reference if row.length == length and row.scores}
    counts = [{key: len(values) for key, values in prompts.items()} for prompts in (scores, others)]
    if not scores or counts[0] != counts[1]:
        return None
    gaps = np.concatenate([np.subtract(values, others[key]) for key, values in scores.items()])
    broken = not np.isfinite(gaps).all()
    by_text = _by_text(rows, gaps)
    wins, losses = (0, 0) if broken else (int((by_text > 0).sum()), int((by_text < 0).sum()))
    return RetrievalDifference(
        length=length,
        against=against,
        points=math.nan if broken else 100 * float(gaps.mean()),
        trials=len(gaps),
        texts=len(by_text) if len(by_text) < len(gaps) else None,
        wins=wins,
        losses=losses,
        p=math.nan if broken else sign_test(wins, losses),
    )


def _by_text(rows: Sequence[RetrievalScore], gaps: np.ndarray) -> np.ndarray:
    """Return the sum of the gaps of each text; each prompt has one where the records do not know better."""
    if not all(record.texts for record in rows):
        return gaps
    sums: dict[tuple[str, int], float] = defaultdict(float)
    for text, gap in zip(((row.task, text) for row in rows for text in row.texts), gaps.tolist(), strict=True):
        sums[text] += gap
    return np.round(list(sums.values()), 9)  # thirds that cancel out may leave a remainder


def aggregate(evaluation: EvalContext, candidate: str) -> list[RetrievalDifference]:
    """Return the candidate's differences from those of `AGAINST`, by length."""
    scores: Any = evaluation.records[RETRIEVAL.name]
    lengths = sorted({record.length for record in scores[candidate]})
    pairs = [
        paired_retrieval(scores[candidate], scores[other], length=length, against=other)
        for other in AGAINST
        if other in scores and other != candidate
        for length in lengths
    ]
    return [pair for pair in pairs if pair is not None]


def figures(runs: Sequence[LabelledResults]) -> list[Figure]:
    """Return a table."""
    rows = [
        [
            run.label(candidate),
            run.label(difference.against),
            difference.length,
            Number.of(difference.points),
            f"{difference.wins} of {difference.texts or difference.trials:,}" if difference.finite else MISSING,
            f"{difference.losses} of {difference.texts or difference.trials:,}" if difference.finite else MISSING,
            difference.p if difference.finite else None,
        ]
        for run in runs
        for candidate in run.results.candidates
        for difference in run.results.get(PAIRED_RETRIEVAL.name).get(candidate, ())
    ]
    columns = (
        *(Column("row"), Column("against"), Column("length", integer), Column("points", fixed(1, sign="+"))),
        *(Column("better on"), Column("worse on"), Column("p", fixed(3))),
    )
    title = "Paired differences of retrieval"
    return [Figure("paired-retrieval", "better", title, SAYS, columns, rows)] if rows else []


PAIRED_RETRIEVAL = Measurement(
    "paired_retrieval",
    RetrievalDifference,
    no_samples,
    aggregate,
    figures,
    requested=lambda spec: bool(spec.retrieval),
)
