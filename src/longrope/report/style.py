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
    """Colour, shape of the points, dashes and width of the line of one name."""

    colour: str
    shape: str
    dash: tuple[int, ...]
    width: float


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Return the look of every name. Names outside `NAMES` take the remaining looks, then the colours in other shapes.

    "run: yarn" has the colour of "yarn" too, and another shape and dash if both are drawn.
    """
    names = list(dict.fromkeys(names))
    taken: dict[str, tuple[int, int]] = {}
    last = {name: name.rpartition(": ")[2] for name in names}
    for name in sorted(names, key=lambda name: last[name] not in NAMES):
        colours = [NAMES.index(last[name])] if last[name] in NAMES else range(len(COLOURS))[::-1]
        free = ((turn, colour) for turn in count() for colour in colours if (turn, colour) not in taken.values())
        taken[name] = next(free)
    return {name: _look(*taken[name], bold=last[name] in BOLD) for name in names}


def _look(turn: int, colour: int, *, bold: bool) -> Look:
    shape = SHAPES[(colour + turn) % len(SHAPES)]
    return Look(COLOURS[colour], shape, DASHES[turn % len(DASHES)], 2.6 if bold else 1.3)


def config() -> dict[str, Any]:
    """Return Vega-Lite's config: a transparent background, so that the page's shows, and lines in its text's colour."""
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
