"""Vega-Lite charts, by altair. Every record of a mark has the text ``tip``, which says its numbers in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from longrope.report.style import GREY, HEIGHT, WIDTH, Look

Records = list[dict[str, Any]]
Looks = Mapping[str, Look]
NAME, TIP = "name:N", "tip:N"


def lines(
    records: Records, looks: Looks, x: alt.X, y: alt.Y, *, step: bool = False, marks: Mapping[float, str] | None = None
) -> alt.LayerChart:
    """Curves by name; records with ``low`` and ``high`` get an error bar.

    Args:
        records: with ``name``, ``x``, ``y``, ``tip``.
        looks: by name.
        x: axis of the field x.
        y: axis of the field y.
        step: whether a value holds until the next.
        marks: places on the axis x that get a dashed vertical line, and their names.
    """
    base = _data(records).encode(x=x, y=y, **_colours(records, looks))
    bold = [name for name in _names(records) if looks[name].width > 2]
    heavy = alt.condition(alt.FieldOneOfPredicate("name", bold), alt.value(2.6), alt.value(1.3))
    shape = "step-after" if step else "linear"
    parts = [base.mark_line(interpolate=shape).encode(description=NAME, strokeWidth=heavy)]
    bars = [one for one in records if one.get("low") is not None]
    if bars:
        low, colour = alt.Y("low:Q", title=y["title"]), _colours(records, looks)["color"]
        rule = _data(bars).mark_rule(strokeWidth=1)
        parts.append(rule.encode(x=x, y=low, y2=alt.Y2("high:Q"), color=colour, description=TIP))
    parts.append(
        base.mark_point(filled=True, size=48, opacity=1).encode(shape=_shapes(records, looks), description=TIP)
    )
    return alt.layer(*_verticals(marks or {}, x), *parts).properties(width=WIDTH, height=HEIGHT)


def _verticals(marks: Mapping[float, str], x: alt.X) -> list[alt.Chart]:
    base = _data([{"x": place, "name": name, "tip": name} for place, name in marks.items()]).encode(x=x)
    text = base.mark_text(align="left", baseline="top", dx=4, dy=-1, color="currentColor", opacity=0.75)
    rule = base.mark_rule(strokeDash=[4, 4], color=GREY).encode(description=TIP)
    return [rule, text.encode(y=alt.value(0), text=NAME, description=alt.value(""))] if marks else []


def bars(records: Records, looks: Looks, title: str) -> alt.LayerChart:
    """A horizontal bar a name; records have ``name``, ``value``, ``label`` and ``tip``."""
    order = _names(records)
    colours = _colours(records, looks)["color"]
    y = alt.Y(NAME, sort=order, title=None)
    base = _data([one | {"end": max(0, one["value"])} for one in records])
    drawn = base.mark_bar(height={"band": 0.7}).encode(
        x=alt.X("value:Q", title=title), y=y, color=colours.copy().legend(None), description=TIP
    )
    text = base.mark_text(align="left", dx=5, color="currentColor").encode(
        x="end:Q", y=y, text="label:N", description=alt.value("")
    )
    return alt.layer(drawn, text).properties(width=WIDTH - 70, height={"step": 26})


def heat(records: Records, y_title: str, legend: str) -> alt.FacetChart:
    """A field of cells a name; records have ``name``, ``x``, ``y``, ``value`` (0 to 1 or None), ``label``, ``tip``."""
    x = alt.X("x:O", sort=list(dict.fromkeys(one["x"] for one in records)), title=None)
    y = alt.Y("y:O", sort=list(dict.fromkeys(one["y"] for one in records)), title=y_title)
    scale = alt.Scale(scheme="viridis", domain=[0, 1])
    shown = alt.Legend(
        title=legend, format=".0%", values=[0, 0.5, 1], gradientLength=200, titleLimit=400, orient="bottom"
    )
    colour = alt.condition(
        "isValid(datum.value)", alt.Color("value:Q", scale=scale, legend=shown), alt.value("#99999980")
    )
    base = alt.Chart().encode(x=x.axis(alt.Axis(labelAngle=0, grid=False)), y=y.axis(alt.Axis(grid=False)))
    cells = base.mark_rect().encode(color=colour, description=TIP)
    ink = alt.condition("datum.value !== null && datum.value < 0.55", alt.value("#ffffff"), alt.value("#000000"))
    text = base.mark_text(fontSize=11).encode(text="label:N", color=ink, description=alt.value(""))
    facet = alt.Facet(NAME, sort=_names(records), title=None)
    layers = alt.layer(cells, text, data=alt.InlineData(values=records))
    return (
        layers.properties(width={"step": 32}, height={"step": 22})
        .facet(facet=facet, columns=3, spacing=14)
        .resolve_axis(x="independent")
    )


def lengths_axis(lengths: Sequence[int]) -> alt.X:
    """Logarithmic, with a tick at every length."""
    axis = alt.Axis(values=sorted(lengths), format=",d", labelOverlap="greedy")
    return alt.X("x:Q", scale=_log(2), axis=axis, title="length (tokens)")


def log_axis(title: str, base: int = 10) -> alt.Y:
    """Logarithmic, numbers written out."""
    return alt.Y("y:Q", scale=_log(base), axis=alt.Axis(format="~g", tickCount=8), title=title)


def _log(base: int) -> alt.Scale:
    return alt.Scale(type="log", base=base, nice=False, padding=14)


def _data(records: Records) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=records))


def _names(records: Records) -> list[str]:
    return list(dict.fromkeys(one["name"] for one in records))


def _colours(records: Records, looks: Looks) -> dict[str, Any]:
    names = _names(records)
    legend = alt.Legend(title=None)
    colour = alt.Scale(domain=names, range=[looks[name].colour for name in names])
    dash = alt.Scale(domain=names, range=[list(looks[name].dash) for name in names])
    return {
        "color": alt.Color(NAME, scale=colour, legend=legend),
        "strokeDash": alt.StrokeDash(NAME, scale=dash, legend=legend),
    }


def _shapes(records: Records, looks: Looks) -> alt.Shape:
    names = _names(records)
    scale = alt.Scale(domain=names, range=[looks[name].shape for name in names])
    return alt.Shape(NAME, scale=scale, legend=alt.Legend(title=None))
