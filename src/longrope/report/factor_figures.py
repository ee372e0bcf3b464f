"""Figures of the factors and of the searches that found them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import altair as alt

from longrope.evaluation.results import parts
from longrope.report import charts
from longrope.report.figure import Column, Figure, fixed, nats, whole
from longrope.report.load import LoadedRun
from longrope.report.search_history import BACKWARD, SearchHistory
from longrope.report.style import Look
from longrope.rope import Rope
from longrope.scaling import Scaling

factor = fixed(3)


def factors(runs: Sequence[LoadedRun], looks: Mapping[str, Look]) -> list[Figure]:
    """Factors by rotary pair, a figure for every geometry."""
    says = (
        "By how much each rotary pair is slowed down: 1 leaves it as it was, s (the length over L0) squeezes all "
        "positions into the range that the model was trained on. Pairs right of the dashed line never finished a turn "
        "within L0. A smooth curve is not better by itself; only the measures above tell."
    )
    made = []
    ropes = list(dict.fromkeys(run.results.rope for run in runs))
    for number, rope in enumerate(ropes):
        scalings = {
            run.label(row) + suffix: scaling
            for run in runs
            if run.results.rope == rope
            for row, about in run.results.rows.items()
            for suffix, scaling in parts(about.factors).items()
        }
        if not scalings:
            continue
        columns = (Column("pair"), Column("wavelength", fixed(1)), *(Column(name, factor) for name in scalings))
        table = [
            [str(pair), float(wavelength), *(scaling.factors[pair] for scaling in scalings.values())]
            for pair, wavelength in enumerate(rope.wavelengths)
        ]
        title = "Rescale factors by rotary pair"
        title += f" (L0 = {rope.original_length:,}, {rope.dim // 2} pairs)" if len(ropes) > 1 else ""
        chart = factor_chart(rope, scalings, looks)
        made.append(Figure(f"factors-{number}", "found", title, says, columns, table, chart, "columns"))
    return made


def factor_chart(rope: Rope, scalings: Mapping[str, Scaling], looks: Mapping[str, Look]) -> alt.LayerChart:
    """Factors by rotary pair, the first pair that did not finish a turn within L0 marked."""
    records = [
        {"name": name, "x": pair, "y": value}
        | {"tip": f"{name}, pair {pair} (wavelength {rope.wavelengths[pair]:,.1f} tokens): factor {factor(value)}"}
        for name, scaling in scalings.items()
        for pair, value in enumerate(scaling.factors)
    ]
    x = alt.X("x:Q", title="rotary pair (high to low frequency)", scale=alt.Scale(nice=False, padding=10))
    marks = {rope.critical_pair - 0.5: f"wavelength > {rope.original_length:,}"}
    return charts.lines(records, looks, x, charts.log_axis("factor λ", base=2), marks=marks)


def search_name(run: LoadedRun, search: SearchHistory, runs: Sequence[LoadedRun]) -> str:
    """The search's name in a report of these runs."""
    return f"{run.name}: {search.name}" if len(runs) > 1 else search.name


def search(runs: Sequence[LoadedRun], looks: Mapping[str, Look]) -> list[Figure]:
    """The best loss so far; every stage of an extension has a figure of its own: another length, another loss."""
    says = (
        "The lowest mean loss on the search documents so far, against the passes spent: a pass is one document through "
        f"the model, a step of the gradient counts {BACKWARD}. A curve that still falls at its end wants a larger "
        "budget. These documents were searched on, so the loss is lower than on others."
    )
    every = [(run, one) for run in runs for one in run.searches if one.steps]
    made = []
    for number, (place, group) in enumerate(
        groupby(every, lambda pair: search_name(*pair, runs).rpartition("seed")[0])
    ):
        table, records = [], []
        for run, one in group:
            name = search_name(run, one, runs)
            table += [[name, step.passes, step.seconds, step.loss] for step in one.steps]
            last = {"name": name, "x": one.passes, "y": one.steps[-1].loss}
            for step in one.steps:
                tip = f"{name}, after {step.passes:,} passes ({step.seconds:,.1f} s): loss {nats(step.loss)} nats"
                records.append({"name": name, "x": step.passes, "y": step.loss, "tip": tip})
            records.append(last | {"tip": f"{name}, end, {one.passes:,} passes: loss {nats(one.steps[-1].loss)} nats"})
        x = alt.X("x:Q", title="passes over one document", scale=alt.Scale(type="log", nice=False, padding=10))
        x = x.axis(alt.Axis(format=",d", tickCount=6))
        y = alt.Y("y:Q", title="best loss so far (nats)", scale=alt.Scale(zero=False))
        columns = (Column("search"), Column("passes", whole), Column("seconds", fixed(1)), Column("best loss", nats))
        title = f"Search: {place.strip(' :')}".removesuffix(": ")
        chart = charts.lines(records, looks, x, y, step=True)
        made.append(Figure(f"search-{number}", "found", title, says, columns, table, chart))
    return made
