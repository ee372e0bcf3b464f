"""Which objective and space give the best retrieval? Perplexity, needles or a mix; free factors or LongRoPE2's κ.

    make benchmark-objectives

The default method searches on ``tiny`` at 8x, three seeds with search documents of their own. Then, on test documents:
perplexity, the loss of the recalled words, and exact recall of one planted line at a random depth (greedy, the
whole answer). Results in ``benchmarks/results/objectives.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from search import BUILD, Bench
from tqdm import tqdm

from longrope.data.split import draw_tokens
from longrope.data.weighted_text import SearchTextSpec, search_texts
from longrope.models.patch import patch
from longrope.objectives.model_loss import ModelObjective
from longrope.provenance import provenance
from longrope.scaling import Scaling
from longrope.schemes import attention_factor
from longrope.search.journal import Journal
from longrope.search.loop import run_search
from longrope.search.registry import METHODS
from longrope.storage.atomic import write_json
from longrope.tasks.registry import make_prompts
from longrope.tasks.scoring import score_prompts

RESULTS, MEASURED = Path(__file__).parent / "results" / "objectives.json", BUILD / "objectives-measured.json"
WEIGHTS = {"perplexity": 0.0, "needles 0.1": 0.1, "needles 0.2": 0.2, "needles 0.5": 0.5, "needles alone": 1.0}
WAYS = [("free", name) for name in WEIGHTS] + [("critical", name) for name in ("perplexity", "needles alone")]
OTHERS, SEEDS, TRIALS = ("paper", "cma", "gradient"), 3, 100


def main() -> None:
    """Search, then measure; what is in the build folder is not done again."""
    bench = Bench("tiny-8x")
    length = bench.case.length
    test = draw_tokens(bench.parts["test"], bench.tokenizer, length=length, count=bench.case.test).tokens
    done: dict[str, Any] = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    rows: dict[str, list[dict[str, Any]]] = {}

    def row(name: str, found: Callable[[int], Scaling]) -> None:
        for seed in range(SEEDS):
            if f"{name} {seed}" not in done:
                scaling = found(seed)
                done[f"{name} {seed}"] = measure(bench, scaling, test, seed) | {"factors": list(scaling.factors)}
                write_json(MEASURED, done)
        rows[name] = [done[f"{name} {seed}"] for seed in range(SEEDS)]
        write_json(RESULTS, {"length": length, "trials": TRIALS, "runs": rows, "provenance": provenance()})

    for name in ("yarn", "heuristic"):
        row(name, lambda _, name=name: bench.schemes[name])
    for form, name in WAYS:
        row(
            f"auto, {name}, {form}",
            lambda seed, form=form, name=name: find(bench, WEIGHTS[name], form, seed),
        )
    for name in OTHERS:  # their searches, for perplexity, are those of benchmarks/search.py
        row(f"{name}, perplexity", lambda seed, name=name: bench.run(name, seed)[0].best)
    for name, runs in rows.items():
        means = {key: float(np.mean([run[key] for run in runs])) for key in ("perplexity", "recall_loss", "recall")}
        print(f"{name:32}", {key: round(value, 3) for key, value in means.items()})


def find(bench: Bench, weight: float, form: str, seed: int) -> Scaling:
    """The best of one search."""
    count, length = bench.case.search, bench.case.length
    documents = bench.parts["search"]
    names = draw_tokens(documents, bench.tokenizer, length=length, count=count * (seed + 1)).names
    own = [document for document in documents if document.name in names[count * seed :]]
    items, _ = search_texts(own, bench.tokenizer, SearchTextSpec([length], count, weight, seed=seed))
    method, factor = METHODS["auto"], attention_factor("su", bench.rope, length)
    space = method.make_space(bench.rope, length, attention_factor=factor, parametrization=form)
    conversation = method.propose(space, [bench.schemes[one] for one in method.schemes], np.random.default_rng(seed))
    path = BUILD / f"objectives-{weight}-{form}-{seed}.jsonl"
    with closing(Journal(path, {"weight": weight, "parametrization": form, "seed": seed}, resume=True)) as journal:
        return run_search(ModelObjective(bench.model, items), conversation, journal).best


def measure(bench: Bench, scaling: Scaling, test: np.ndarray, seed: int) -> dict[str, Any]:
    """Test perplexity; loss of the answers and exact recall over `TRIALS` texts with one needle."""
    length = test.shape[1]
    probes = make_prompts("recall", bench.tokenizer, length=length, trials=TRIALS, texts=test, seed=1000 + seed)
    with patch(bench.model, scaling), tqdm(total=TRIALS, desc=scaling.scheme) as bar:
        found = score_prompts(bench.model, bench.tokenizer, probes, on_progress=lambda _: bar.update())
    (perplexity,) = bench.judged("test", [scaling])
    loss = float(np.mean([outcome.loss for outcome in found if outcome.loss is not None]))
    recall = fmean(outcome.score for outcome in found)
    return {"perplexity": math.exp(perplexity), "recall_loss": loss, "recall": recall}


if __name__ == "__main__":
    main()
