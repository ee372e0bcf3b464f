"""Compare spaces and options of a search side by side, judged on validation documents.

    make benchmark-spaces

On ``tiny`` at 8x, two seeds with search documents of their own as in ``benchmarks/search.py``; the test documents are
not looked at, so that defaults can be chosen by what comes out. Journals are in ``build/search``, results in
``benchmarks/results/spaces.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from search_bench import SearchBench
from tqdm import tqdm

import longrope as lr
from longrope.provenance import provenance
from longrope.search.auto import Auto
from longrope.search.cma import Cma
from longrope.search.gradient import Gradient
from longrope.search.parametrizations import PARAMETRIZATIONS
from longrope.search.space import START_TOKENS
from longrope.storage.atomic import write_json

RESULTS, SEEDS, VALIDATION = Path(__file__).parent / "results" / "spaces.json", 2, 8
STEPS = Gradient(steps=40)


@dataclass(frozen=True)
class Way:
    """A method in a space; ``then`` goes on from the best that it found."""

    method: lr.Method
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


def search(
    bench: SearchBench, name: str, variant: Way, seed: int, starts: Sequence[lr.Scaling] | None = None
) -> tuple[lr.Scaling, float]:
    """Return the best candidate on the search documents of a seed, and the evaluations spent."""
    result, cost = bench.search(
        f"spaces {name}", variant.method, seed, evaluations=variant.evaluations, starts=starts, **variant.space
    )
    outcome = result.outcomes[0]
    if variant.then is None:
        return outcome.best, outcome.tokens / cost
    best, evaluations = search(bench, f"{name}, second", variant.then, seed, [outcome.best])
    return best, outcome.tokens / cost + evaluations


def main() -> None:
    """Search in every way; what the journals hold is not computed again."""
    bench = SearchBench("tiny-8x")
    documents = bench.draw("held_out", VALIDATION)
    (yarn,) = bench.perplexities("held_out", documents, [bench.schemes["yarn"]])
    rows: dict[str, dict[str, Any]] = {}
    for name, variant in tqdm(WAYS.items()):
        scalings, evaluations = zip(*(search(bench, name, variant, seed) for seed in range(SEEDS)), strict=True)
        against = [value / yarn for value in bench.perplexities("held_out", documents, scalings)]
        rows[name] = {
            "evaluations": list(evaluations),
            "validation_perplexity_against_yarn": against,
            "median": median(against),
            "attention_factors": [scaling.attention_factor for scaling in scalings],
            "start_tokens": [scaling.start_tokens for scaling in scalings],
        }
        record = {"length": bench.case.length, "documents": list(documents.names), "ways": rows}
        write_json(RESULTS, record | {"yarn": yarn, "provenance": provenance()})
        print(f"{name:50} {rows[name]['median']:.4f} {max(evaluations):.0f}")


if __name__ == "__main__":
    main()
