"""Draw the charts of figures with altair (Vega-Lite). The text ``tip`` of a record says its numbers in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt

from longrope.evaluation.figure import Axis, Bars, Chart, ChartRecords, Heat, Lines
from longrope.report.style import GREY, HEIGHT, WIDTH, Look

Looks = Mapping[str, Look]
NAME, TIP = "name:N", "tip:N"


def draw(chart: Chart, looks: Looks) -> alt.TopLevelMixin:
    """Return the picture of a chart.

    Args:
        chart: Chart as plain data.
        looks: Colour, shape and dash by name.
    """
    return DRAW[type(chart)](chart, looks)


def draw_lines(lines: Lines, looks: Looks) -> alt.LayerChart:
    """Return curves by name; records with ``low`` and ``high`` have an error bar."""
    return draw_curves(lines.records, looks, _x(lines.x), _y(lines.y), marks=lines.marks, step=lines.step)


def draw_curves(
    records: ChartRecords,
    looks: Looks,
    x: alt.X,
    y: alt.Y,
    *,
    marks: Mapping[float, str] | None = None,
    step: bool = False,
) -> alt.LayerChart:
    """Return the curves of `draw_lines` on axes of altair's."""
    base = _data(records).encode(x=x, y=y, **_colours(records, looks))
    bold = [name for name in _names(records) if looks[name].width > 2]
    heavy = alt.condition(alt.FieldOneOfPredicate("name", bold), alt.value(2.6), alt.value(1.3))
    interpolation = "step-after" if step else "linear"
    layers = [base.mark_line(interpolate=interpolation).encode(description=NAME, strokeWidth=heavy)]
    bars = [record for record in records if record.get("low") is not None]
    if bars:
        low, colour = alt.Y("low:Q", title=y["title"]), _colours(records, looks)["color"]
        rule = _data(bars).mark_rule(strokeWidth=1)
        layers.append(rule.encode(x=x, y=low, y2=alt.Y2("high:Q"), color=colour, description=TIP))
    points = base.mark_point(filled=True, size=48, opacity=1)
    layers.append(points.encode(shape=_shapes(records, looks), description=TIP))
    return alt.layer(*_verticals(marks or {}, x), *layers).properties(width=WIDTH, height=HEIGHT)


def _verticals(marks: Mapping[float, str], x: alt.X) -> list[alt.Chart]:
    base = _data([{"x": value, "name": name, "tip": name} for value, name in marks.items()]).encode(x=x)
    text = base.mark_text(align="left", baseline="top", dx=4, dy=-1, color="currentColor", opacity=0.75)
    rule = base.mark_rule(strokeDash=[4, 4], color=GREY).encode(description=TIP)
    return [rule, text.encode(y=alt.value(0), text=NAME, description=alt.value(""))] if marks else []


def draw_bars(bars: Bars, looks: Looks) -> alt.LayerChart:
    """Return a horizontal bar for every name."""
    order = _names(bars.records)
    colours = _colours(bars.records, looks)["color"]
    y = alt.Y(NAME, sort=order, title=None)
    base = _data([record | {"end": max(0, record["value"])} for record in bars.records])
    rectangles = base.mark_bar(height={"band": 0.7}).encode(
        x=alt.X("value:Q", title=bars.title), y=y, color=colours.copy().legend(None), description=TIP
    )
    text = base.mark_text(align="left", dx=5, color="currentColor").encode(
        x="end:Q", y=y, text="label:N", description=alt.value("")
    )
    return alt.layer(rectangles, text).properties(width=WIDTH - 70, height={"step": 26})


def draw_heat(heat: Heat, looks: Looks) -> alt.FacetChart:
    """Return a heat map for every name."""
    records = heat.records
    x = alt.X("x:O", sort=list(dict.fromkeys(record["x"] for record in records)), title=None)
    y = alt.Y("y:O", sort=list(dict.fromkeys(record["y"] for record in records)), title=heat.y_title)
    scale = alt.Scale(scheme="viridis", domain=[0, 1])
    legend = alt.Legend(
        title=heat.legend, format=".0%", values=[0, 0.5, 1], gradientLength=200, titleLimit=400, orient="bottom"
    )
    colour = alt.condition(
        "isValid(datum.value)", alt.Color("value:Q", scale=scale, legend=legend), alt.value("#99999980")
    )
    base = alt.Chart().encode(x=x.axis(alt.Axis(labelAngle=0, grid=False)), y=y.axis(alt.Axis(grid=False)))
    rectangles = base.mark_rect().encode(color=colour, description=TIP)
    ink = alt.condition("datum.value !== null && datum.value < 0.55", alt.value("#ffffff"), alt.value("#000000"))
    text = base.mark_text(fontSize=11).encode(text="label:N", color=ink, description=alt.value(""))
    facet = alt.Facet(NAME, sort=_names(records), title=None)
    layers = alt.layer(rectangles, text, data=alt.InlineData(values=records))
    return (
        layers.properties(width={"step": 32}, height={"step": 22})
        .facet(facet=facet, columns=3, spacing=14)
        .resolve_axis(x="independent")
    )


DRAW: dict[type, Callable[[Any, Looks], alt.TopLevelMixin]] = {Lines: draw_lines, Bars: draw_bars, Heat: draw_heat}


def _x(axis: Axis) -> alt.X:
    """Return the horizontal axis for a kind of quantity."""
    x, counts = alt.X("x:Q", title=axis.title), alt.Axis(format=",d", tickCount=6)
    ticks = alt.Axis(values=sorted(axis.ticks), format=",d", labelOverlap="greedy")
    return {
        "length": lambda: x.scale(_log(2)).axis(ticks),
        "position": lambda: x.axis(counts),
        "pair": lambda: x.scale(alt.Scale(nice=False, padding=10)),
        "passes": lambda: x.scale(alt.Scale(type="log", nice=False, padding=10)).axis(counts),
    }[axis.kind]()


def _y(axis: Axis) -> alt.Y:
    """Return the vertical axis for a kind of quantity."""
    y, numbers = alt.Y("y:Q", title=axis.title), alt.Axis(format="~g", tickCount=8)
    return {
        "perplexity": lambda: y.scale(_log(10)).axis(numbers),
        "factor": lambda: y.scale(_log(2)).axis(numbers),
        "loss": lambda: y.scale(alt.Scale(zero=False)),
    }[axis.kind]()


def _log(base: int) -> alt.Scale:
    return alt.Scale(type="log", base=base, nice=False, padding=14)


def _data(records: ChartRecords) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=records))


def _names(records: ChartRecords) -> list[str]:
    return list(dict.fromkeys(record["name"] for record in records))


def _colours(records: ChartRecords, looks: Looks) -> dict[str, Any]:
    names: Sequence[str] = _names(records)
    legend = alt.Legend(title=None)
    colour = alt.Scale(domain=names, range=[looks[name].colour for name in names])
    dash = alt.Scale(domain=names, range=[list(looks[name].dash) for name in names])
    return {
        "color": alt.Color(NAME, scale=colour, legend=legend),
        "strokeDash": alt.StrokeDash(NAME, scale=dash, legend=legend),
    }


def _shapes(records: ChartRecords, looks: Looks) -> alt.Shape:
    names = _names(records)
    scale = alt.Scale(domain=names, range=[looks[name].shape for name in names])
    return alt.Shape(NAME, scale=scale, legend=alt.Legend(title=None))
