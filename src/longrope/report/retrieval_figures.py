"""Figures of retrieval: heat maps of depth by length, one a row, for every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from longrope.evaluation.results import RetrievalScore
from longrope.report import charts
from longrope.report.figure import Column, Figure, Number, fixed, share
from longrope.report.load import LoadedRun
from longrope.report.perplexity_figures import head
from longrope.report.style import Look
from longrope.units import short_length


def retrieval(runs: Sequence[LoadedRun], looks: Mapping[str, Look]) -> list[Figure]:
    """How often what was hidden is told word for word, a figure a task."""
    says = (
        "How often the model repeats exactly what was hidden in a long text, by the text's length and by how deep it "
        "was hidden (0% is the beginning). Low scores at lengths where perplexity is good mean that the model reads "
        "fluently and forgets."
    )
    return _heat(runs, "score", "Retrieval", says)


def choice(runs: Sequence[LoadedRun], looks: Mapping[str, Look]) -> list[Figure]:
    """How often what was hidden is likelier than other answers, a figure a task."""
    says = (
        "How often the model gives the hidden answer a higher probability than the wrong ones offered with it: easier "
        "than repeating it, and a guess is right sometimes."
    )
    return _heat(runs, "choice", "Forced choice", says)


def _heat(runs: Sequence[LoadedRun], what: Literal["score", "choice"], title: str, says: str) -> list[Figure]:
    rows = [
        (run.label(row), cells)
        for run in runs
        for row in run.results.rows
        if (cells := run.results.retrieval.get(row, ()))
    ]
    tasks = list(dict.fromkeys(cell.task for _, cells in rows for cell in cells))
    made = []
    for number, task in enumerate(tasks):
        ours = [(name, [cell for cell in cells if cell.task == task]) for name, cells in rows]
        every = [cell for _, cells in ours for cell in cells]
        if what == "choice" and all(cell.choice is None for cell in every):
            continue
        lengths = sorted({cell.length for cell in every})
        table, records = [], []
        for name, cells in ours:
            grid = {(cell.depth, cell.length): cell for cell in cells}
            depths = sorted({cell.depth for cell in cells}, key=lambda depth: -1 if depth is None else depth)
            for depth in depths:
                found = [grid.get((depth, length)) for length in lengths]
                numbers = [_number(cell, what) for cell in found]
                table.append([name, _depth(depth), *numbers])
                records += [
                    {"name": name, "x": short_length(length), "y": _depth(depth), "value": one.value}
                    | {"label": fixed(0, times=100)(one.value), "tip": _tip(name, task, depth, length, one, cell)}
                    for length, one, cell in zip(lengths, numbers, found, strict=True)
                ]
        columns = (Column("row"), Column("depth"), *(Column(head(length, runs), share) for length in lengths))
        chart = charts.heat(records, "depth", "percent right")
        said = f"{says}{_trials(every, what)}"
        made.append(Figure(f"{what}-{number}", "works", f"{title}: {task}", said, columns, table, chart, "heat"))
    return made


def _number(cell: RetrievalScore | None, what: Literal["score", "choice"]) -> Number:
    if cell is None:
        return Number(None)
    return Number(cell.score, cell.standard_error) if what == "score" else Number(cell.choice)


def _depth(depth: float | None) -> str:
    return "any" if depth is None else f"{100 * depth:.3g}%"


def _tip(name: str, task: str, depth: float | None, length: int, number: Number, cell: RetrievalScore | None) -> str:
    trials = f" of {cell.trials} trials" if cell is not None and cell.trials else ""
    return f"{name}, {task}, {length:,} tokens, depth {_depth(depth)}: {share(number)}{trials}"


def _trials(cells: Sequence[RetrievalScore], what: str) -> str:
    trials = sorted({cell.trials for cell in cells if cell.trials})
    chances = sorted({cell.chance for cell in cells if cell.chance is not None})
    said = f" Each cell is {' or '.join(f'{one:,}' for one in trials)} trials." if trials else ""
    if what == "choice" and chances:
        said += f" Guessing gives {' to '.join(share(one) for one in dict.fromkeys((chances[0], chances[-1])))}."
    return said
