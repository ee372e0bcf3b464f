"""Which rotary pairs does interpolation harm, and which does it help? Measured on ``tiny``, at 8x.

    make docs-pairs            # minutes on two cores

Pairs from k on are interpolated by s, those before are left alone: k = 0 is PI, k = dim/2 the original. The other way
round, pairs before k are interpolated. Perplexity on test documents, without fine-tuning and with an attention factor
of 1. Results in ``benchmarks/results/pairs.json``, which ``scripts/docs_figures.py`` draws.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from longrope import Rope, Scaling, compare, draw_tokens, load, load_documents, split_documents
from longrope.provenance import provenance
from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "pairs.json"
LENGTHS, DOCUMENTS, SEED, STEP = (256, 2048), 8, 0, 2


def main() -> None:
    """Measure, and write the results file."""
    model, tokenizer = load("tiny", dtype="float32")
    rope = Rope.of(model)
    parts = split_documents(load_documents("stdlib:unseen"), seed=SEED)
    drawn = draw_tokens(parts["test"], tokenizer, length=LENGTHS[-1], count=DOCUMENTS)
    table = compare(model, candidates(rope), drawn.tokens, LENGTHS, done=tell)
    perplexities = {name: [asdict(cell) for cell in row] for name, row in table.items()}
    about = {"model": "tiny", "lengths": LENGTHS, "data": "stdlib:unseen", "seed": SEED, "documents": drawn.names}
    write_json(RESULTS, {**about, "perplexity": perplexities, "provenance": provenance()})


def candidates(rope: Rope) -> dict[str, Scaling]:
    """By the name of what is interpolated: ``from k`` or ``before k``."""
    pairs, s = rope.dim // 2, LENGTHS[-1] / rope.original_length
    edges = range(0, pairs + 1, STEP)
    later = {f"from {k}": [1.0] * k + [s] * (pairs - k) for k in edges}
    earlier = {f"before {k}": [s] * k + [1.0] * (pairs - k) for k in edges}
    return {name: Scaling(factors, length=LENGTHS[-1]) for name, factors in (later | earlier).items()}


def tell(name: str, count: int) -> None:
    """Say how far it is."""
    print(f"\r{name}: {count} documents ", end="", file=sys.stderr)


if __name__ == "__main__":
    main()
