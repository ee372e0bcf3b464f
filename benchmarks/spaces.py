"""Which space, and which parts of a search, are worth it? Ways to search side by side, judged on validation documents.

    make benchmark-spaces

On ``tiny`` at 8x, two seeds with search documents of their own as in ``benchmarks/search.py``; the test documents are
not looked at, so that defaults can be chosen by what comes out. Journals are in ``build/search``, results in
``benchmarks/results/spaces.json``.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from search import BUILD, Bench
from tqdm import tqdm

from longrope.provenance import provenance
from longrope.scaling import Scaling
from longrope.schemes import attention_factor
from longrope.search.auto import Auto
from longrope.search.budget import Budget
from longrope.search.cma import Cma
from longrope.search.gradient import Gradient
from longrope.search.journal import Journal
from longrope.search.loop import run_search
from longrope.search.method import Method
from longrope.search.parametrizations import PARAMETRIZATIONS
from longrope.search.space import START_TOKENS
from longrope.storage.atomic import write_json

RESULTS, SEEDS, VALIDATION = Path(__file__).parent / "results" / "spaces.json", 2, 8
STEPS = Gradient(steps=40)


@dataclass(frozen=True)
class Way:
    """A method in a space; ``then`` goes on from the best that it found."""

    method: Method
    space: dict[str, Any] = field(default_factory=dict)
    evaluations: int | None = None
    then: Way | None = None


WAYS = {
    "auto": Way(Auto()),
    "auto, attention factor searched": Way(Auto(), {"search_attention": True}),
    "auto, start tokens searched": Way(Auto(), {"start_tokens": START_TOKENS}),
    "auto, ceiling s": Way(Auto(), {"ceiling": 1.0}),
    "auto, ceiling 4s": Way(Auto(), {"ceiling": 4.0}),
    "auto, twice the steps": Way(Auto(gradient=Gradient(steps=80))),
    "auto, then cma": Way(Auto(), then=Way(Cma(), {"parametrization": "free"}, 64)),
    **{f"gradient, {form}": Way(STEPS, {"parametrization": form}) for form in PARAMETRIZATIONS},
    "gradient, free, fast pairs frozen (10 turns)": Way(Gradient(steps=40, frozen=10.0)),
    "gradient, free, fast pairs frozen (3 turns)": Way(Gradient(steps=40, frozen=3.0)),
    "gradient, free, fast pairs not damped": Way(Gradient(steps=40, reach=1e-9)),
    **{f"cma, {form}": Way(Cma(), {"parametrization": form}, 128) for form in PARAMETRIZATIONS},
}


def find(bench: Bench, name: str, way: Way, seed: int, starts: list[Scaling] | None = None) -> tuple[Scaling, float]:
    """The best candidate on the search documents of a seed, and the evaluations spent."""
    objective, documents = bench.objective(seed)
    method, length, cost = way.method, bench.case.length, sum(objective.tokens)
    factor = attention_factor("su", bench.rope, length)
    space = method.make_space(bench.rope, length, **{"attention_factor": factor, **way.space})
    starts = starts or [bench.schemes[one] for one in method.schemes]
    conversation = method.propose(space, starts, np.random.default_rng(seed))
    budget = Budget(cost * way.evaluations) if way.evaluations else None
    path = BUILD / f"spaces-{name.replace(' ', '-')}-{seed}.jsonl"
    with closing(Journal(path, {"way": name, "seed": seed, "documents": documents}, resume=True)) as journal:
        outcome = run_search(objective, conversation, journal, budget=budget)
    if way.then is None:
        return outcome.best, outcome.tokens / cost
    best, more = find(bench, f"{name}, second", way.then, seed, [outcome.best])
    return best, outcome.tokens / cost + more


def main() -> None:
    """Search every way; what the journals hold is not computed again."""
    bench = Bench("tiny-8x")
    bench.judges["held_out"] = bench.drawn("held_out", VALIDATION)
    (yarn,) = bench.judged("held_out", [bench.schemes["yarn"]])
    rows: dict[str, dict[str, Any]] = {}
    for name, way in tqdm(WAYS.items()):
        found = [find(bench, name, way, seed) for seed in range(SEEDS)]
        losses = bench.judged("held_out", [scaling for scaling, _ in found])
        against = [math.exp(loss - yarn) for loss in losses]
        rows[name] = {
            "evaluations": [evaluations for _, evaluations in found],
            "validation_perplexity_against_yarn": against,
            "median": median(against),
            "attention_factors": [scaling.attention_factor for scaling, _ in found],
            "start_tokens": [scaling.start_tokens for scaling, _ in found],
        }
        record = {"length": bench.case.length, "documents": bench.judges["held_out"][1], "ways": rows}
        write_json(RESULTS, record | {"yarn": math.exp(yarn), "provenance": provenance()})
    for name, row in rows.items():
        print(f"{name:50} {row['median']:.4f} {max(row['evaluations']):.0f}")


if __name__ == "__main__":
    main()
