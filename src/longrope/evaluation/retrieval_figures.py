"""Figures of retrieval tasks: heat maps of depth by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from longrope.evaluation.figure import Column, Figure, Heat, Number, fixed, share
from longrope.evaluation.labelled import LabelledResults, head, labelled_records
from longrope.evaluation.retrieval_score import RetrievalScore, pooled_rate
from longrope.units import short_length

Score = Literal["score", "choice"]
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


def figures(runs: Sequence[LabelledResults]) -> list[Figure]:
    """Return heat maps of depth by length: scores and choices, a figure for each task."""
    candidates = labelled_records(runs, "retrieval")
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
