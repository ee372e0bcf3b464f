"""Search methods side by side: loss and test perplexity against token-evaluations, three seeds, on the model ``tiny``.

    make benchmark-search                  # tiny at 8x and 32x; hours on a CPU; continues where it stopped
    python benchmarks/search.py tiny-8x auto gradient
    python benchmarks/search.py smollm2-4x smollm2-8x       # with a GPU

Seed k minimises the loss of search documents of its own. The validation documents choose the winner of a search. All
candidates are judged on the same test documents. The three kinds are disjoint. Journals are in ``build/search``,
results in ``benchmarks/results/search-CASE.json``, the plot in ``docs/images/search-CASE.png``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import altair as alt
from search_bench import CASES, SearchBench

import longrope as lr
from longrope.provenance import provenance
from longrope.report.charts import draw_curves
from longrope.report.style import GREY, looks
from longrope.report.svg import save
from longrope.storage.atomic import write_json

RESULTS, IMAGES = Path(__file__).parent / "results", Path("docs/images")
ON_CPU = ("tiny-8x", "tiny-32x")
POINTS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)


def measure(bench: SearchBench, method: str, seed: int) -> dict[str, Any]:
    """Return the curve of one search by evaluations, which are token-evaluations over the search tokens."""
    result, cost = bench.search_by(method, seed)
    outcome, winner = result.outcomes[0], result.extension.long
    spent, auto = outcome.tokens / cost, lr.METHODS["auto"].passes(bench.case.search) / bench.case.search
    points = {point for point in (*POINTS, auto, spent) if outcome.improvements[0].tokens / cost <= point <= spent}
    best = {
        point: [step.scaling for step in outcome.improvements if step.tokens <= point * cost][-1]
        for point in sorted(points)
    }
    *tested, chosen = bench.perplexities("test", bench.test, [*best.values(), winner])
    return {
        "documents": list(bench.search_documents(seed).names),
        "tokens_per_evaluation": cost,
        "evaluations": spent,
        "seconds": round(outcome.seconds, 1),
        "search": [[step.tokens / cost, math.exp(step.loss)] for step in outcome.improvements],
        "test": [list(pair) for pair in zip(best, tested, strict=True)],
        "chosen_on_validation": chosen,
        "factors": list(winner.factors),
    }


def first_at(run: dict[str, Any], perplexity: float) -> float:
    """Return the evaluations after which a search was at or below a search perplexity; infinite if never."""
    return next((evaluations for evaluations, value in run["search"] if value <= perplexity), math.inf)


def value_at(curve: list[list[float]], evaluations: float) -> float:
    """Return a curve's last value at or before a number of evaluations; NaN if there is none yet."""
    return next((value for point, value in reversed(curve) if point <= evaluations + 1e-6), math.nan)


def compare_auto(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return how many times cheaper ``auto`` reaches the others' final search loss, and its test perplexity."""
    ratios: dict[str, Any] = {}
    for other in [name for name in runs if name != "auto"]:
        pairs = list(zip(runs["auto"], runs[other], strict=False))
        cheaper = [others["evaluations"] / first_at(auto, others["search"][-1][1]) for auto, others in pairs]
        equal = [auto["test"][-1][1] / value_at(others["test"], auto["evaluations"]) for auto, others in pairs]
        final = [auto["test"][-1][1] / others["test"][-1][1] for auto, others in pairs]
        ratios[other] = {
            "times_cheaper": cheaper,
            "test_perplexity_at_equal_cost": equal,
            "test_perplexity_at_the_end": final,
            "median": {"times_cheaper": median(cheaper), "at_equal_cost": median(equal), "at_the_end": median(final)},
        }
    return ratios


def plot(name: str, record: dict[str, Any], path: Path) -> None:
    """Draw perplexity relative to YaRN's against evaluations: the median over seeds, and their range."""
    x = alt.X("x:Q", title="evaluations (token-evaluations / search tokens)").scale(type="log", nice=False)
    y = alt.Y("y:Q", title="perplexity relative to YaRN").scale(zero=False)
    yarn = alt.Chart(alt.InlineData(values=[{}])).mark_rule(color=GREY).encode(y=alt.datum(1))
    charts = [
        (
            draw_curves(list(curves(record, kind)), looks(record["runs"]), x.axis(format="~s", tickCount=5), y) + yarn
        ).properties(title=f"{kind} documents", width=380, height=280)
        for kind in ("search", "test")
    ]
    title = f"{name}: best candidate so far, median and range over seeds"
    save(alt.hconcat(*charts).properties(title=alt.Title(title, offset=12)), path)


def curves(record: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    """Yield the median, lowest and highest value over the seeds of each method, relative to YaRN's."""
    for method, runs in record["runs"].items():
        begin, end = max(run[kind][0][0] for run in runs), max(run["evaluations"] for run in runs)
        yarn = record["yarn_search"] if kind == "search" else [record["schemes_test"]["yarn"]] * len(runs)
        for point in sorted({begin, end, *(point for point in POINTS if begin < point < end)}):
            values = [value_at(run[kind], point) / against for run, against in zip(runs, yarn, strict=False)]
            number = {"y": median(values), "low": min(values), "high": max(values)}
            yield {"name": method, "x": point, "tip": f"{method}: {number['y']:.3f} at {point:g}", **number}


def main(names: list[str], methods: list[str]) -> None:
    """Run what is not done yet; write results and plot of each case. Where methods are named, the others' rows stay."""
    for name in names or ON_CPU:
        bench, seeds, path = SearchBench(name), CASES[name].seeds, RESULTS / f"search-{name}.json"
        runs = json.loads(path.read_text())["runs"] if methods and path.exists() else {}
        for method in [method for method in seeds if not methods or method in methods]:
            runs[method] = [measure(bench, method, seed) for seed in range(seeds[method])]
        tested = bench.perplexities("test", bench.test, list(bench.schemes.values()))
        yarn = [bench.schemes["yarn"]]
        record = {
            "length": bench.case.length,
            "validation_documents": list(bench.validation.names),
            "test_documents": list(bench.test.names),
            "schemes_test": dict(zip(bench.schemes, tested, strict=True)),
            "yarn_search": [
                bench.perplexities(f"search-{seed}", bench.search_documents(seed), yarn)[0]
                for seed in range(max(seeds.values()))
            ],
            "runs": {method: runs[method] for method in seeds if method in runs},
            "auto_against": compare_auto(runs) if "auto" in runs else {},
            "provenance": provenance(),
        }
        write_json(path, record)
        print(json.dumps(record["auto_against"], indent=1))
        plot(name, record, IMAGES / f"search-{name}.png")


if __name__ == "__main__":
    main([word for word in sys.argv if word in CASES], [word for word in sys.argv if word in lr.METHODS])
