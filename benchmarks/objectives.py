"""Compare objectives and spaces by retrieval: perplexity, needles or a mix; free factors or LongRoPE2's κ.

    make benchmark-objectives

The default method searches on ``tiny`` at 8x, three seeds with search documents of their own. Then, on test documents:
perplexity, the loss of the recalled words, and exact recall of one planted line at a random depth (greedy, the
whole answer). Results in ``benchmarks/results/objectives.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from search_bench import BUILD, SearchBench

import longrope as lr
from longrope.provenance import provenance
from longrope.storage.atomic import write_json
from longrope.tasks.registry import make_prompts
from longrope.tasks.scoring import score_prompts

RESULTS, MEASURED = Path(__file__).parent / "results" / "objectives.json", BUILD / "objectives-measured.json"
WEIGHTS = {"perplexity": 0.0, "needles 0.1": 0.1, "needles 0.2": 0.2, "needles 0.5": 0.5, "needles alone": 1.0}
WAYS = [("free", name) for name in WEIGHTS] + [("critical", name) for name in ("perplexity", "needles alone")]
OTHERS, SEEDS, TRIALS = ("paper", "cma", "gradient"), 3, 100


def main() -> None:
    """Search, then measure; what is in the build folder is not done again."""
    bench = SearchBench("tiny-8x")
    done: dict[str, Any] = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    rows: dict[str, list[dict[str, Any]]] = {}
    searches: dict[str, Callable[[int], lr.Scaling]] = {
        name: lambda _, name=name: bench.schemes[name] for name in ("yarn", "heuristic")
    }
    searches |= {f"auto, {name}, {form}": partial(search, bench, WEIGHTS[name], form) for form, name in WAYS}
    for name in OTHERS:  # their searches, for perplexity, are those of benchmarks/search.py
        searches[f"{name}, perplexity"] = lambda seed, name=name: bench.search_by(name, seed)[0].outcomes[0].best
    for name, find in searches.items():
        for key, seed in [(f"{name} {seed}", seed) for seed in range(SEEDS)]:
            if key not in done:
                scaling = find(seed)
                done[key] = measure(bench, scaling, seed) | {"factors": list(scaling.factors)}
                write_json(MEASURED, done)
        rows[name] = [done[f"{name} {seed}"] for seed in range(SEEDS)]
        write_json(RESULTS, {"length": bench.case.length, "trials": TRIALS, "runs": rows, "provenance": provenance()})
        means = {key: fmean(run[key] for run in rows[name]) for key in ("perplexity", "recall_loss", "recall")}
        print(f"{name:32}", {key: round(value, 3) for key, value in means.items()}, flush=True)


def search(bench: SearchBench, weight: float, parametrization: str, seed: int) -> lr.Scaling:
    """Return the best candidate of one search."""
    name, auto = f"objectives {weight} {parametrization}", lr.METHODS["auto"]
    result, _ = bench.search(name, auto, seed, needles=weight, parametrization=parametrization)
    return result.outcomes[0].best


def measure(bench: SearchBench, scaling: lr.Scaling, seed: int) -> dict[str, Any]:
    """Return test perplexity; loss of the answers and exact recall over `TRIALS` texts with one needle."""
    texts, length = bench.test.tokens, bench.case.length
    prompts = make_prompts("recall", bench.tokenizer, length=length, trials=TRIALS, texts=texts, seed=1000 + seed)
    with lr.patch(bench.model, scaling):
        scores = score_prompts(bench.model, bench.tokenizer, prompts)
    (perplexity,) = bench.perplexities("test", bench.test, [scaling])
    loss = fmean(score.loss for score in scores if score.loss is not None)
    return {"perplexity": perplexity, "recall_loss": loss, "recall": fmean(score.score for score in scores)}


if __name__ == "__main__":
    main()
