"""Colours, shapes and sizes: one look for a name in every chart, on light and dark ground."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any

# Okabe and Ito's palette, told apart by people with any colour vision; shapes tell them apart in print
COLOURS = ("currentColor", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#7F7F00")
SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "triangle-left", "triangle-right")
DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3))  # for the names beyond the eighth
NAMES = ("original", "pi", "ntk", "yarn", "heuristic", "searched")
BOLD = ("searched", "extended")
GREY = "#888888"
FONT = "Arial, 'Liberation Sans', Helvetica, sans-serif"
WIDTH, HEIGHT = 450, 270


@dataclass(frozen=True)
class Look:
    """How one name is drawn."""

    colour: str
    shape: str
    dash: tuple[int, ...]
    width: float


def looks(names: Iterable[str]) -> dict[str, Look]:
    """By name. Names that are not in `NAMES` take the looks that are left, then the same colours in other shapes.

    "run: yarn" has the colour of "yarn" too, and another shape and dash if both are there.
    """
    names, taken = list(dict.fromkeys(names)), {}
    last = {name: name.rpartition(": ")[2] for name in names}
    for name in sorted(names, key=lambda name: last[name] not in NAMES):
        places = [NAMES.index(last[name])] if last[name] in NAMES else range(len(COLOURS))[::-1]
        taken[name] = next((turn, place) for turn in count() for place in places if (turn, place) not in taken.values())
    return {name: _look(*taken[name], bold=last[name] in BOLD) for name in names}


def _look(turn: int, colour: int, *, bold: bool) -> Look:
    shape = SHAPES[(colour + turn) % len(SHAPES)]
    return Look(COLOURS[colour], shape, DASHES[turn % len(DASHES)], 2.6 if bold else 1.3)


def config() -> dict[str, Any]:
    """Vega-Lite's config: no ground, so that a page's own shows, and lines in the colour of its text."""
    text = {"labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 12, "titleFontSize": 12}
    axis = {**text, "titleFontWeight": "normal", "gridColor": GREY, "gridOpacity": 0.25}
    axis |= {"domainColor": GREY, "tickColor": GREY, "labelLimit": 190}
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": axis,
        "legend": {**text, "orient": "bottom", "columns": 4, "labelLimit": 190, "symbolStrokeWidth": 1.6},
        "header": {**text, "labelFontWeight": "bold"},
        "title": {"color": "currentColor", "anchor": "start", "fontSize": 14},
    }
