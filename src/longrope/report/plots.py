"""Factor curves and perplexity by length, as PNG or SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    for i, (name, scaling) in enumerate(scalings.items()):
        axes.plot(range(len(scaling.factors)), scaling.factors, label=name, **_style(name, i))
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
    for i, (name, row) in enumerate(table.items()):
        lengths = [cell.length for cell in row]
        errors = [cell.standard_error for cell in row]
        values = [cell.perplexity for cell in row]
        axes.errorbar(lengths, values, yerr=errors, capsize=2, label=name, **_style(name, i))
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


def _style(name: str, i: int) -> dict[str, Any]:
    look = NAMES.index(name) if name in NAMES else (len(NAMES) + i) % len(MARKERS)
    width = 2.4 if name == "searched" else 1.3
    return {"color": COLOURS[look], "marker": MARKERS[look], "markersize": 4, "linewidth": width}


def _save(figure: Figure, axes: Axes, path: Path, title: str) -> None:
    axes.set_title(title, loc="left")
    figure.legend(frameon=False, ncols=6, loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
