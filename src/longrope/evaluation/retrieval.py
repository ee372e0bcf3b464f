"""Measurement: retrieval tasks, by task, length and depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longrope.evaluation.measurement import Measurement, SampleSet, numbers
from longrope.evaluation.prompt_samples import prompt_samples
from longrope.evaluation.retrieval_figures import figures
from longrope.evaluation.retrieval_score import RetrievalScore
from longrope.evaluation.statistics import mean_error, wilson_interval

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
        trials = _with_few_depths(evaluation.samples(candidate, samples))
        first = evaluation.spec.retrieval[task, length][0]
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
                    **_choice(at_depth, score),
                    trials=len(at_depth),
                    questions=evaluation.spec.questions,
                    chat=first.chat,
                    own_haystack=first.own_haystack,
                )
            )
    return records


def _choice(trials: Sequence[Any], score: float) -> dict[str, Any]:
    """Return the fields of the forced choice, with its interval; empty without wrong answers."""
    choices = [trial["choice"] for trial in trials if trial["choice"] is not None]
    if not choices:
        return {}
    fields = {"chance": 1 / trials[0]["choices"]}
    if math.isfinite(score):
        low, high = wilson_interval(sum(choices), len(choices))
        fields |= {"choice": sum(choices) / len(choices), "choice_low": low, "choice_high": high}
    return fields


def _with_few_depths(trials: Sequence[Any]) -> Sequence[Any]:
    """Return the trials with depths that were drawn at random replaced by the middle of their fifth of the text."""
    drawn = {trial["depth"] for trial in trials}
    if None in drawn or len(drawn) <= max(FIFTHS, len(trials) / 2):
        return trials
    fifths = [min(FIFTHS - 1, int(FIFTHS * trial["depth"])) for trial in trials]
    return [trial | {"depth": (fifth + 0.5) / FIFTHS} for trial, fifth in zip(trials, fifths, strict=True)]


RETRIEVAL = Measurement(
    "retrieval", RetrievalScore, sample_sets, aggregate, figures, requested=lambda spec: bool(spec.retrieval)
)
