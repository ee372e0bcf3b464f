"""Measurement: retrieval tasks, by task, length and depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_serializer, model_validator

from longrope.evaluation.figure import Column, Figure, Heat, Number, fixed, share
from longrope.evaluation.labelled import LabelledResults, head, labelled_records
from longrope.evaluation.measurement import Measurement, SampleSet, numbers
from longrope.evaluation.prompt_samples import prompt_samples
from longrope.evaluation.records import Record, Value
from longrope.evaluation.statistics import mean_error, wilson_interval
from longrope.units import short_length

if TYPE_CHECKING:
    from longrope.evaluation.runner import EvalContext

Score = Literal["score", "choice"]
INTERVALS = ("low", "high", "choice_low", "choice_high")
FIFTHS = 5
SAYS: dict[Score, str] = {
    "score": (
        "How often the model repeats exactly what was hidden in a long text, by the text's length and by how deep it "
        "was hidden (0% is the beginning). Low scores at lengths where perplexity is good mean that the model reads "
        "fluently and forgets."
    ),
    "choice": (
        "How often the model gives the hidden answer a higher probability than the wrong ones offered with it: easier "
        "than repeating it, and a guess is right sometimes."
    ),
}


class RetrievalScore(Record):
    """Share of the trials of a task in which a model finds what was hidden.

    Args:
        task: Name of the task.
        length: Tokens of each text, with the room for the answer.
        depth: Where the needle lies, from 0 (beginning) to 1 (end); None for several needles.
        score: Mean share of the answers that the generated text holds; NaN where logits of a trial are not finite.
        standard_error: Standard error of the score over trials.
        low: Lower end of the score's 95% interval (Wilson); None without the number of trials.
        high: Upper end of it.
        scores: Score of each trial, in the order of the prompts, which all candidates share.
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
                for name, end in zip((low, high), ends, strict=True):
                    object.__setattr__(self, name, end)
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: Any) -> dict[str, Any]:
        left_out = {"questions": (1,), "chat": (False,), "own_haystack": (False,), "scores": ((),)} | dict.fromkeys(
            INTERVALS, (None,)
        )
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
    count = sum(number or 0 for number in trials)
    successes = sum(record.score * (record.trials or 0) for record in records)
    return Number.of(successes / count, interval=wilson_interval(min(successes, count), count))


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


def figures(runs: Sequence[LabelledResults]) -> list[Figure]:
    """Return heat maps of depth by length: scores and choices, a figure for each task."""
    candidates = labelled_records(runs, RETRIEVAL.name)
    tasks = list(dict.fromkeys(record.task for _, records in candidates for record in records))
    by_task = {
        task: [(name, [record for record in records if record.task == task]) for name, records in candidates]
        for task in tasks
    }
    scores = [
        _heat_map(f"score-{number}", f"Retrieval: {task}", by_task[task], "score", runs)
        for number, task in enumerate(tasks)
    ]
    choices = [
        _heat_map(f"choice-{number}", f"Forced choice: {task}", by_task[task], "choice", runs)
        for number, task in enumerate(tasks)
        if any(record.choice is not None for _, records in by_task[task] for record in records)
    ]
    return [*scores, *choices]


def _heat_map(
    key: str,
    title: str,
    candidates: Sequence[tuple[str, list[RetrievalScore]]],
    kind: Score,
    runs: Sequence[LabelledResults],
) -> Figure:
    every = [record for _, records in candidates for record in records]
    lengths = sorted({record.length for record in every})
    table, fields = [], []
    for name, records in candidates:
        grid = {(record.depth, record.length): record for record in records}
        depths = sorted({record.depth for record in records}, key=lambda depth: -1 if depth is None else depth)
        for depth in depths:
            row = [grid.get((depth, length)) for length in lengths]
            numbers = [_number(record, kind) for record in row]
            table.append([name, _depth(depth), *numbers])
            fields += [
                {"name": name, "x": short_length(length), "y": _depth(depth), "value": number.value}
                | {"label": fixed(0, times=100)(number.value) if number.finite else "nan"}
                | {"tip": f"{name}, {every[0].task}, {length:,} tokens, depth {_depth(depth)}: {_tip(number, record)}"}
                for length, number, record in zip(lengths, numbers, row, strict=True)
            ]
        if len(depths) > 1 and kind == "score":
            by_length = [[record for record in records if record.length == length] for length in lengths]
            table.append([name, "all", *map(pooled_rate, by_length)])
    columns = (Column("row"), Column("depth"), *(Column(head(length, runs), share) for length in lengths))
    chart = Heat(fields, "depth", "percent right")
    return Figure(
        key, "works", title, SAYS[kind] + _trials(every, kind) + _prompt_form(every), columns, table, chart, "heat"
    )


def _number(record: RetrievalScore | None, kind: Score) -> Number:
    if record is None:
        return Number(None)
    if not record.finite:
        return Number.of(record.score)
    return record.rate if kind == "score" else record.choice_rate


def _depth(depth: float | None) -> str:
    return "any" if depth is None else f"{100 * depth:.3g}%"


def _tip(number: Number, record: RetrievalScore | None) -> str:
    trials = f" of {record.trials} trials" if record is not None and record.trials else ""
    return f"{share(number)}{trials}"


def _trials(records: Sequence[RetrievalScore], kind: Score) -> str:
    trials = sorted({record.trials for record in records if record.trials})
    chances = sorted({record.chance for record in records if record.chance is not None})
    sentences = f" Each cell is {' or '.join(f'{count:,}' for count in trials)} trials" if trials else ""
    sentences += "; its 95% interval (Wilson) is in brackets." if trials else ""
    questions = sorted({record.questions for record in records})
    if questions[-1:] > [1]:
        sentences += f" Each text is asked {' or '.join(f'{count:,}' for count in questions)} questions."
    if kind == "choice" and chances:
        ends = dict.fromkeys((chances[0], chances[-1]))
        sentences += f" Guessing gives {' to '.join(share(chance) for chance in ends)}."
    return sentences


def _prompt_form(records: Sequence[RetrievalScore]) -> str:
    """Return sentences about the form of the prompts, as far as it is not the plain one of the task's definition."""
    sentences = " Prompts are in the tokenizer's chat template." if any(record.chat for record in records) else ""
    if any(record.own_haystack for record in records):
        sentences += " Own haystack: the needles are hidden in the test documents, not in RULER's essays."
    return sentences


RETRIEVAL = Measurement(
    "retrieval", RetrievalScore, sample_sets, aggregate, figures, requested=lambda spec: bool(spec.retrieval)
)
