"""The score of a model in a retrieval task, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from pydantic import model_serializer, model_validator

from longrope.evaluation.figure import Number
from longrope.evaluation.records import Record, Value
from longrope.evaluation.statistics import rate_interval, wilson_interval

INTERVALS = ("low", "high", "choice_low", "choice_high")


class RetrievalScore(Record):
    """Share of the trials of a task in which a model finds what was hidden.

    Args:
        task: Name of the task.
        length: Tokens of each text, with the room for the answer.
        depth: Where the needle lies, from 0 (beginning) to 1 (end); None for several needles.
        score: Mean share of the answers that the generated text holds; NaN where logits of a trial are not finite.
        standard_error: Standard error of the score over trials.
        low: Lower end of the score's 95% interval (Wilson; fewer effective trials where questions share texts); None
            without the number of trials.
        high: Upper end of it.
        scores: Score of each trial, in the order of the prompts, which all candidates share.
        texts: Number of each trial's text, where several questions share one.
        choice: Share of the trials in which the answer is likelier than wrong ones; None without wrong ones.
        choice_low: Lower end of the choice's 95% interval (Wilson).
        choice_high: Upper end of it.
        chance: The choice of a guess.
        trials: Number of questions.
        questions: Number of questions that each text is asked.
        chat: Whether the prompts are in the tokenizer's chat template.
        own_haystack: Whether the user's documents are in place of the haystack that the task's definition names.
    """

    task: str
    length: int
    depth: float | None = None
    score: Value
    standard_error: Value = math.nan
    low: float | None = None
    high: float | None = None
    scores: tuple[Value, ...] = ()
    texts: tuple[int, ...] = ()
    choice: float | None = None
    choice_low: float | None = None
    choice_high: float | None = None
    chance: float | None = None
    trials: int | None = None
    questions: int = 1
    chat: bool = False
    own_haystack: bool = False

    @model_validator(mode="after")
    def _with_intervals(self) -> RetrievalScore:
        """Add the intervals; files of earlier versions have none."""
        for rate, low, high in (("score", "low", "high"), ("choice", "choice_low", "choice_high")):
            value = getattr(self, rate)
            missing = getattr(self, low) is None
            if missing and self.trials and value is not None and 0 <= value <= 1:
                ends = wilson_interval(value * self.trials, self.trials)
                if rate == "score" and self.texts:
                    ends = rate_interval(self.scores, self.texts)
                for name, end in zip((low, high), ends, strict=True):
                    object.__setattr__(self, name, end)
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: Any) -> dict[str, Any]:
        left_out = {"questions": (1,), "chat": (False,), "own_haystack": (False,), "scores": ((),), "texts": ((),)}
        left_out |= dict.fromkeys(INTERVALS, (None,))
        return {key: value for key, value in serialize(self).items() if value not in left_out.get(key, ())}

    @property
    def rate(self) -> Number:
        """The score with its interval."""
        return Number.of(self.score, self.standard_error, interval=_ends(self.low, self.high))

    @property
    def choice_rate(self) -> Number:
        """The choice with its interval."""
        return Number.of(self.choice, interval=_ends(self.choice_low, self.choice_high))


def _ends(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def pooled_rate(records: Sequence[RetrievalScore]) -> Number:
    """Return the share of all trials of some records, with its interval if the numbers of trials are known."""
    if not records:
        return Number(None)
    trials = [record.trials for record in records]
    if not all(trials):
        return Number.of(fmean(record.score for record in records))
    if all(record.texts for record in records):
        scores = [score for record in records for score in record.scores]
        texts = [(record.task, text) for record in records for text in record.texts]
        return Number.of(fmean(scores), interval=rate_interval(scores, texts))
    count = sum(number or 0 for number in trials)
    successes = sum(record.score * (record.trials or 0) for record in records)
    return Number.of(successes / count, interval=wilson_interval(min(successes, count), count))
