"""SmolLM2-135M at 16K side by side: original, YaRN, heuristic, and the factors of ``benchmarks/smollm2.py``.

    make benchmark-smollm2-eval    # an hour on two cores; resumes after an interrupt

Perplexity on two test documents, and one needle at three depths. Results and report are in
``benchmarks/results/smollm2-eval``.
"""

from __future__ import annotations

import json
from pathlib import Path

import longrope as lr
from longrope.models.load import load_config

RESULTS = Path(__file__).parent / "results"
LENGTH, LENGTHS = 16384, (2048, 8192, 16384)
OPTIONS = lr.EvalOptions(
    documents=2,
    retrieval_lengths=(8192, 16384),
    trials=3,
    depths=(0.1, 0.5, 0.9),
    dtype="bfloat16",
    output=Path("build/smollm2/eval"),
)


def main() -> None:
    """Evaluate and write the report."""
    rope = lr.Rope.of(load_config("smollm2"))
    factors = json.loads((RESULTS / "smollm2-16k.json").read_text())["factors"]
    attention = lr.attention_factor("su", rope, LENGTH)
    searched = lr.Scaling(factors, attention_factor=attention, scheme="searched", length=LENGTH)
    candidates = {name: lr.scheme(name, rope, LENGTH) for name in ("yarn", "heuristic")}
    candidates |= {"searched": lr.Extension.of(rope, searched)}
    results = lr.evaluate(
        "smollm2",
        candidates=candidates,
        lengths=LENGTHS,
        data="stdlib",
        retrieval=["niah_single_2"],
        options=OPTIONS,
    )
    folder = RESULTS / "smollm2-eval"
    results.save(folder / "results.json")
    lr.report(folder, folder / "report.html")


if __name__ == "__main__":
    main()
