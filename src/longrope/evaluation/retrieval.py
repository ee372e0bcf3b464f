"""Measurement: retrieval tasks, by task, length and depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longrope.evaluation.measurement import Measurement, SampleSet, numbers
from longrope.evaluation.prompt_samples import prompt_samples
from longrope.evaluation.retrieval_figures import figures
from longrope.evaluation.retrieval_score import RetrievalScore
from longrope.evaluation.statistics import mean_error, rate_interval

if TYPE_CHECKING:
    from longrope.evaluation.runner import EvalContext

FIFTHS = 5


def _by_task(evaluation: EvalContext) -> dict[tuple[str, int], SampleSet]:
    """Return the samples by task and length."""
    spec = evaluation.spec
    return {
        (task, length): prompt_samples(task, length, prompts, batch=spec.batch, questions=spec.questions)
        for (task, length), prompts in spec.retrieval.items()
    }


def sample_sets(evaluation: EvalContext) -> list[SampleSet]:
    """Return the samples of every task and length."""
    return list(_by_task(evaluation).values())


def aggregate(evaluation: EvalContext, candidate: str) -> list[RetrievalScore]:
    """Return the candidate's scores by task, length and depth."""
    records = []
    for (task, length), samples in _by_task(evaluation).items():
        first, questions = evaluation.spec.retrieval[task, length][0], evaluation.spec.questions
        trials = [
            {**trial, "text": number // questions, "depth": _fifth(trial["depth"]) if first.drawn else trial["depth"]}
            for number, trial in enumerate(evaluation.samples(candidate, samples))
        ]
        for depth in dict.fromkeys(trial["depth"] for trial in trials):
            at_depth = [trial for trial in trials if trial["depth"] == depth]
            scores = numbers([trial["score"] for trial in at_depth])
            score, error = mean_error(scores)
            records.append(
                RetrievalScore(
                    task=task,
                    length=length,
                    depth=depth,
                    score=score,
                    standard_error=error,
                    scores=tuple(scores),
                    texts=tuple(trial["text"] for trial in at_depth) if questions > 1 else (),
                    **_choice(at_depth, score),
                    trials=len(at_depth),
                    questions=questions,
                    chat=first.chat,
                    own_haystack=first.own_haystack,
                )
            )
    return records


def _choice(trials: Sequence[Any], score: float) -> dict[str, Any]:
    """Return the fields of the forced choice, with its interval; empty without wrong answers."""
    trials = [trial for trial in trials if trial["choice"] is not None]
    if not trials:
        return {}
    choices = [float(trial["choice"]) for trial in trials]
    fields = {"chance": 1 / trials[0]["choices"]}
    if math.isfinite(score):
        low, high = rate_interval(choices, [trial["text"] for trial in trials])
        fields |= {"choice": sum(choices) / len(choices), "choice_low": low, "choice_high": high}
    return fields


def _fifth(depth: float | None) -> float | None:
    """Return the middle of the fifth of the text in which a depth lies."""
    return None if depth is None else (min(FIFTHS - 1, int(FIFTHS * depth)) + 0.5) / FIFTHS


RETRIEVAL = Measurement(
    "retrieval", RetrievalScore, sample_sets, aggregate, figures, requested=lambda spec: bool(spec.retrieval)
)
