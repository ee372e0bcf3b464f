"""Closed forms on ``tiny`` with their own attention factor and with that of the searches (``su``), at 8x and 32x.

    make benchmark-attention-factor     # half an hour on one core; continues where it stopped

Perplexity on eight test documents, and 200 questions for planted lines at the target length. Results in
``benchmarks/results/attention-factor.json``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import longrope as lr
from longrope.evaluation.statistics import mean_error
from longrope.provenance import provenance
from longrope.schemes import attention_factor
from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parent / "results" / "attention-factor.json"
SCHEMES, LENGTHS = ("yarn", "mrrope_pro", "bm", "tailspline"), (2048, 8192)
OPTIONS = lr.EvalOptions(original=False, documents=8, trials=200, questions=10, dtype="float32")


def measure(scheme: str, length: int) -> dict[str, dict[str, float]]:
    """Return attention factor, perplexity, and recall with its standard error, by the rule of the factor."""
    model, tokenizer = lr.load("tiny")
    rope = lr.Rope.of(model)
    own = lr.scheme(scheme, rope, length)
    candidates = {"own": own, "su": replace(own, attention_factor=attention_factor("su", rope, length))}
    found = lr.evaluate(
        model, tokenizer, candidates, lengths=[length], data="stdlib:unseen", retrieval=["recall"], options=OPTIONS
    )
    rows = {}
    for name, scaling in candidates.items():
        scores = [score for row in found.get("retrieval")[name] for score in row.scores]
        recall, error = mean_error(scores)
        perplexity = next(row.perplexity for row in found.get("perplexity")[name] if row.length == length)
        rows[name] = {
            "attention_factor": scaling.attention_factor,
            "perplexity": perplexity,
            "recall": recall,
            "standard_error": error,
            "questions": len(scores),
        }
    return rows


def main() -> None:
    """Measure what the results do not have yet."""
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    for length in LENGTHS:
        for scheme in SCHEMES:
            if f"{scheme} {length}" not in record["rows"]:
                record["rows"][f"{scheme} {length}"] = measure(scheme, length)
                print(scheme, length, record["rows"][f"{scheme} {length}"], flush=True)
                write_json(RESULTS, record | {"provenance": provenance()})


if __name__ == "__main__":
    main()
