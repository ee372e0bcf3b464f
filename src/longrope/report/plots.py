"""Factor curves and perplexity by length, as PNG or SVG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from longrope.evaluation.perplexity import Perplexity
from longrope.rope import Rope, Scaling

# Okabe and Ito's palette, told apart by people with any colour vision; markers tell them apart in print
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#7F7F00")
MARKERS = "osD^vPX*"
NAMES = ("original", "pi", "ntk", "yarn", "heuristic", "searched")  # the same look in every plot


def plot_factors(rope: Rope, scalings: Mapping[str, Scaling], path: Path) -> None:
    """Factors by rotary pair, with the critical pair marked.

    Args:
        rope: the model's geometry.
        scalings: by name.
        path: of the picture; its suffix decides the format.
    """
    figure, axes = _axes("rotary pair (high to low frequency)", "factor λ")
    styles = _styles(scalings)
    for name, scaling in scalings.items():
        axes.plot(range(len(scaling.factors)), scaling.factors, label=name, **styles[name])
    axes.axvline(rope.critical_pair - 0.5, color="#888888", linestyle="--", linewidth=1)
    text = f" wavelength > {rope.original_length:,}"
    axes.annotate(text, (rope.critical_pair - 0.5, 1), xycoords=("data", "axes fraction"), va="top", color="#666666")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _save(figure, axes, path, "Rescale factors by dimension")


def plot_perplexity(table: Mapping[str, Sequence[Perplexity]], original_length: int, path: Path) -> None:
    """Perplexity by length with its standard error, both axes logarithmic.

    Args:
        table: of `compare`.
        original_length: L0, marked by a line.
        path: of the picture; its suffix decides the format.
    """
    figure, axes = _axes("length (tokens)", "perplexity on test documents")
    styles = _styles(table)
    for name, row in table.items():
        lengths = [cell.length for cell in row]
        errors = [cell.standard_error for cell in row]
        values = [cell.perplexity for cell in row]
        axes.errorbar(lengths, values, yerr=errors, capsize=2, label=name, **styles[name])
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axvline(original_length, color="#888888", linestyle="--", linewidth=1)
    axes.annotate(" L0", (original_length, 1), xycoords=("data", "axes fraction"), va="top", color="#666666")
    _save(figure, axes, path, "Perplexity by length")


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """By name: colour, marker and width. Names that are not in `NAMES` take the looks that are left."""
    known = {name: NAMES.index(name) for name in names if name in NAMES}
    left = cycle([look for look in reversed(range(len(COLOURS))) if look not in known.values()] or [0])
    looks = {name: known[name] if name in known else next(left) for name in names}
    return {
        name: {
            "color": COLOURS[look],
            "marker": MARKERS[look],
            "markersize": 4,
            "linewidth": 2.4 if name in ("searched", "extended") else 1.3,
        }
        for name, look in looks.items()
    }


def _save(figure: Figure, axes: Axes, path: Path, title: str) -> None:
    axes.set_title(title, loc="left")
    figure.legend(frameon=False, ncols=4, loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
