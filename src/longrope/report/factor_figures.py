"""Figures of the factors and of the searches that chose them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from longrope.evaluation.figure import Axis, Column, Figure, Lines, fixed, integer, nats
from longrope.report.load import LoadedRun
from longrope.report.search_history import SearchHistory
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.search.protocol import BACKWARD_COST

factor = fixed(3)
FACTORS_SAY = (
    "By how much each rotary pair is slowed down: 1 leaves it as it was, s (the length over L0) squeezes all positions "
    "into the range that the model was trained on. Pairs right of the dashed line never finished a turn within L0."
)
NOT_BETTER = " A smooth curve is not better by itself; only the measures above tell."
SEARCH_SAYS = (
    "The lowest mean loss on the search documents so far, against the passes spent: a pass is one document through "
    f"the model, a step of the gradient counts {BACKWARD_COST}. A curve that still falls at its end wants a larger "
    "budget. These documents were searched on, so the loss is lower than on others."
)


def factors(runs: Sequence[LoadedRun]) -> list[Figure]:
    """Return the factors by rotary pair, a figure for every geometry."""
    figures = []
    ropes = list(dict.fromkeys(run.results.rope for run in runs))
    for number, rope in enumerate(ropes):
        scalings = {
            run.label(name) + suffix: scaling
            for run in runs
            if run.results.rope == rope
            for name, candidate in run.results.candidates.items()
            for suffix, scaling in candidate.scalings.items()
        }
        if scalings:
            figure = factors_figure(rope, scalings)
            more = f" (L0 = {rope.original_length:,}, {rope.dim // 2} pairs)" if len(ropes) > 1 else ""
            says = FACTORS_SAY + NOT_BETTER
            figures.append(replace(figure, key=f"factors-{number}", title=figure.title + more, says=says))
    return figures


def factors_figure(rope: Rope, scalings: Mapping[str, Scaling]) -> Figure:
    """Return the factors by rotary pair as a table and a chart."""
    columns = (Column("pair"), Column("wavelength", fixed(1)), *(Column(name, factor) for name in scalings))
    table = [
        [str(pair), float(wavelength), *(scaling.factors[pair] for scaling in scalings.values())]
        for pair, wavelength in enumerate(rope.wavelengths)
    ]
    title, chart = "Rescale factors by rotary pair", factor_chart(rope, scalings)
    return Figure("factors", "found", title, FACTORS_SAY, columns, table, chart, "columns")


def factor_chart(rope: Rope, scalings: Mapping[str, Scaling]) -> Lines:
    """Return the factors by rotary pair, with a mark before the first pair that does not finish a turn within L0."""
    points = [
        {"name": name, "x": pair, "y": value}
        | {"tip": f"{name}, pair {pair} (wavelength {rope.wavelengths[pair]:,.1f} tokens): factor {factor(value)}"}
        for name, scaling in scalings.items()
        for pair, value in enumerate(scaling.factors)
    ]
    marks = {rope.critical_pair - 0.5: f"wavelength > {rope.original_length:,}"}
    x, y = Axis("pair", "rotary pair (high to low frequency)"), Axis("factor", "factor λ")
    return Lines(points, x, y, marks=marks)


def search_name(run: LoadedRun, search: SearchHistory, runs: Sequence[LoadedRun]) -> str:
    """Return the search's name in a report of these runs."""
    return f"{run.name}: {search.name}" if len(runs) > 1 else search.name


def search(runs: Sequence[LoadedRun]) -> list[Figure]:
    """Return the best loss so far, a figure for every stage of an extension, since their losses differ in length."""
    searches = [(run, search) for run in runs for search in run.searches if search.steps]
    groups = groupby(searches, lambda pair: search_name(*pair, runs).rpartition("seed")[0])
    return [
        _search_figure(number, stage, [(search_name(*pair, runs), pair[1]) for pair in group])
        for number, (stage, group) in enumerate(groups)
    ]


def _search_figure(number: int, stage: str, searches: Sequence[tuple[str, SearchHistory]]) -> Figure:
    table, points = [], []
    for name, history in searches:
        table += [[name, step.passes, step.seconds, step.loss] for step in history.steps]
        for step in history.steps:
            tip = f"{name}, after {step.passes:,} passes ({step.seconds:,.1f} s): loss {nats(step.loss)} nats"
            points.append({"name": name, "x": step.passes, "y": step.loss, "tip": tip})
        best = history.steps[-1].loss
        tip = f"{name}, end, {history.passes:,} passes: loss {nats(best)} nats"
        points.append({"name": name, "x": history.passes, "y": best, "tip": tip})
    x, y = Axis("passes", "passes over one document"), Axis("loss", "best loss so far (nats)")
    columns = (Column("search"), Column("passes", integer), Column("seconds", fixed(1)), Column("best loss", nats))
    title = f"Search: {stage.strip(' :')}".removesuffix(": ")
    return Figure(f"search-{number}", "found", title, SEARCH_SAYS, columns, table, Lines(points, x, y, step=True))
