"""Draw the figures of docs/how-it-works.md and docs/extension.md, from the code's own formulas and from results files.

python scripts/docs_figures.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import altair as alt
import numpy as np

from longrope import Rope, scheme
from longrope.data.sparse_windows import draw_sparse_window
from longrope.formats.load_factors import load_extension
from longrope.report.charts import draw_curves, draw_lines
from longrope.report.factor_figures import factor_chart
from longrope.report.style import looks
from longrope.report.svg import save
from longrope.schemes import COMPARED

ROOT = Path(__file__).parents[1]
IMAGES, RESULTS = ROOT / "docs" / "images", ROOT / "benchmarks" / "results"
SMOLLM2 = Rope(dim=64, base=100_000.0, original_length=8192)
S, FAST, SLOW = 8, 0, 23
CHUNK_COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#eeca3b")


def main() -> None:
    """Draw all figures."""
    figures = {"wavelengths": wavelengths(), "angles": angles(), "factors-smollm2": factors(), "pairs": pairs()}
    figures["sparse-window"] = sparse_window()
    for name, chart in figures.items():
        save(chart, IMAGES / f"{name}.svg")


def wavelengths() -> alt.LayerChart:
    """Plot the wavelength of each pair of SmolLM2, and L0."""
    complete, incomplete, limit = "finishes a turn within L0", "does not", "L0 = 8,192 tokens"
    records = [
        {"name": complete if pair < SMOLLM2.critical_pair else incomplete, "x": pair, "y": wavelength, "tip": str(pair)}
        for pair, wavelength in enumerate(SMOLLM2.wavelengths.tolist())
    ]
    limit_line = [{"name": limit, "x": pair, "y": SMOLLM2.original_length, "tip": limit} for pair in (0, 31)]
    names = [limit, complete, incomplete]
    return draw_curves(records + limit_line, looks(names), pair_axis(), log_axis("wavelength (tokens)"))


def angles() -> alt.HConcatChart:
    """Plot the cosine of the angle of a fast and a slow pair by distance: their share in the score of equal vectors."""
    near, far = np.arange(13), np.linspace(0, S * SMOLLM2.original_length, 33)
    left = cosines(FAST, near, "distance (tokens)", f"Fast pair (turns in {SMOLLM2.wavelengths[FAST]:.1f} tokens)")
    slow = f"Slow pair (turns in {SMOLLM2.wavelengths[SLOW]:,.0f} tokens)"
    marks = {float(SMOLLM2.original_length): "L0: trained length"}
    right = cosines(SLOW, far, "distance (tokens)", slow, marks)
    return alt.hconcat(left.properties(width=280), right.properties(width=280))


def cosines(
    pair: int, distances: np.ndarray, axis: str, title: str, marks: dict[float, str] | None = None
) -> alt.LayerChart:
    """Plot the cosine of one pair by distance, as trained and with PI for 8 times L0."""
    records = [
        {"name": name, "x": float(distance), "y": math.cos(distance * SMOLLM2.inv_freq[pair] / factor), "tip": name}
        for name, factor in {"original": 1, "pi": S}.items()
        for distance in distances
    ]
    x = alt.X("x:Q", title=axis, scale=alt.Scale(nice=False), axis=alt.Axis(format=",d", tickCount=6))
    y = alt.Y("y:Q", title="cosine of the angle", scale=alt.Scale(domain=[-1.1, 1.3]), axis=alt.Axis(values=[-1, 0, 1]))
    return draw_curves(records, looks(record["name"] for record in records), x, y, marks=marks).properties(title=title)


def factors() -> alt.LayerChart:
    """Plot the factors of SmolLM2 for twice its length: closed forms and the result of a search."""
    length = 2 * SMOLLM2.original_length
    scalings = {name: scheme(name, SMOLLM2, length) for name in COMPARED}
    scalings["searched"] = load_extension(RESULTS / "smollm2-16k-search").long
    return draw_lines(factor_chart(SMOLLM2, scalings), looks(scalings))


def pairs() -> alt.LayerChart:
    """Plot the perplexity of tiny when only the pairs from k on are interpolated."""
    table = json.loads((RESULTS / "pairs.json").read_text(encoding="utf-8"))["perplexity"]
    records = [
        {"name": f"at {point['length']:,} tokens", "x": int(name.split()[1]), "y": point["perplexity"], "tip": name}
        for name, points in table.items()
        for point in points
        if name.startswith("from")
    ]
    x = alt.X("x:Q", title="first interpolated pair (0: all, 32: none)", scale=alt.Scale(nice=False, padding=10))
    names = list(dict.fromkeys(record["name"] for record in records))
    return draw_curves(records, looks(names), x, log_axis("perplexity", base=2))


def sparse_window() -> alt.LayerChart:
    """Draw the chunks of a sparse window of 2,048 tokens in a text, and how many tokens each key stands for."""
    window = draw_sparse_window(
        np.arange(20_000), np.array([]), [], size=2048, length=12_000, rng=np.random.default_rng(6)
    )
    text, packed = "the text: every token at its own position", "the window: 2,048 tokens"
    records = [{"row": text, "begin": 0, "end": int(window.positions[-1]) + 1, "chunk": "left out"}]
    for number in np.unique(window.chunk_ids):
        tokens = np.flatnonzero(window.chunk_ids == number)
        weight = float(np.exp(window.key_bias[tokens[0]]))
        begin, size, chunk = int(window.positions[tokens[0]]), len(tokens), f"chunk {number + 1}"
        records.append({"row": text, "begin": begin, "end": begin + size, "chunk": chunk, "weight": f"x {weight:.3g}"})
        records.append({"row": packed, "begin": int(tokens[0]), "end": int(tokens[-1]) + 1, "chunk": chunk})
    names = list(dict.fromkeys(record["chunk"] for record in records))
    color = alt.Color("chunk:N", scale=alt.Scale(domain=names, range=["#d8d8d8", *CHUNK_COLORS]), legend=None)
    base = alt.Chart(alt.Data(values=records)).encode(
        x=alt.X("begin:Q", title="tokens; a key weighs as many tokens as it and the gap after its chunk have"),
        y=alt.Y("row:N", sort=[text, packed], title=None, axis=alt.Axis(labelLimit=400)),
    )
    weights = base.mark_text(align="left", dy=-26, fontSize=9).encode(text="weight:N")
    chart = base.mark_bar(height=26).encode(x2="end:Q", color=color) + weights.transform_filter("isValid(datum.weight)")
    return chart.properties(width=560, height=120)


def log_axis(title: str, base: int = 10) -> alt.Y:
    """Return a logarithmic vertical axis."""
    scale = alt.Scale(type="log", base=base, nice=False, padding=14)
    return alt.Y("y:Q", title=title, scale=scale, axis=alt.Axis(format="~g", tickCount=8))


def pair_axis() -> alt.X:
    """Return the axis of the rotary pairs."""
    return alt.X("x:Q", title="rotary pair (high to low frequency)", scale=alt.Scale(nice=False, padding=10))


if __name__ == "__main__":
    main()
