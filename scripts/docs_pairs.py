"""Measure which rotary pairs interpolation harms and which it helps, on ``tiny`` at 8x.

    make docs-pairs            # minutes on two cores

One series interpolates the pairs from k on by s: k = 0 is PI, and k = dim/2 the original model. The other series
interpolates the pairs before k. Both measure perplexity on test documents, without fine-tuning and with an attention
factor of 1. The results are in ``benchmarks/results/pairs.json``, which ``scripts/docs_figures.py`` draws.
"""

from __future__ import annotations

import sys
from pathlib import Path

from longrope import Rope, Scaling, load, load_documents, perplexity
from longrope.data.split import draw_tokens, split_documents
from longrope.provenance import provenance
from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "pairs.json"
LENGTHS, DOCUMENTS, SEED, STEP = (256, 2048), 8, 0, 2


def main() -> None:
    """Measure and write the results file."""
    model, tokenizer = load("tiny", dtype="float32")
    rope = Rope.of(model)
    documents = split_documents(load_documents("stdlib:unseen"), seed=SEED)
    drawn = draw_tokens(documents["test"], tokenizer, length=LENGTHS[-1], count=DOCUMENTS)
    perplexities = {}
    for name, scaling in candidates(rope).items():
        print(f"\r{name} ", end="", file=sys.stderr)
        results = perplexity(model, drawn.tokens, LENGTHS, scaling=scaling)
        perplexities[name] = [result.model_dump(exclude={"corpus"}) for result in results]
    settings = {"model": "tiny", "lengths": LENGTHS, "data": "stdlib:unseen", "seed": SEED, "documents": drawn.names}
    write_json(RESULTS, {**settings, "perplexity": perplexities, "provenance": provenance()})


def candidates(rope: Rope) -> dict[str, Scaling]:
    """Return the scaling of each candidate, named by its interpolated pairs: ``from k`` or ``before k``."""
    pairs, s = rope.dim // 2, LENGTHS[-1] / rope.original_length
    edges = range(0, pairs + 1, STEP)
    later = {f"from {k}": [1.0] * k + [s] * (pairs - k) for k in edges}
    earlier = {f"before {k}": [s] * k + [1.0] * (pairs - k) for k in edges}
    return {name: Scaling(factors, length=LENGTHS[-1]) for name, factors in (later | earlier).items()}


if __name__ == "__main__":
    main()
