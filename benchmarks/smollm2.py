"""SmolLM2-135M from 8,192 to 16,384 tokens on a CPU: search, compare on test documents, export, reload.

    make benchmark-smollm2          # hours
    make benchmark-smollm2-eval     # an hour: perplexity and a needle by the factors in the results of the search

Each step resumes after an interrupt. The results are in ``benchmarks/results/smollm2-16k*.json`` and
``benchmarks/results/smollm2-eval``. The journals are in ``build/smollm2*``; remove these folders to measure everything
again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

import longrope as lr
from longrope.models.load import load_config
from longrope.provenance import provenance
from longrope.storage.atomic import write_json

LENGTH, LENGTHS = 16384, (2048, 4096, 8192, 12288, 16384)
RUN, CHECKPOINT = Path("build/smollm2-16k"), Path("build/smollm2-16k-checkpoint")
RESULTS = Path(__file__).parent / "results"
SEARCH = lr.SearchOptions(
    population=8,
    schemes=("yarn", "ntk"),
    budget=12 * LENGTH,
    search_documents=1,
    held_out_documents=1,
    needles=0,
    dtype="bfloat16",
    existing="resume",
)
EVALUATION = lr.EvalOptions(documents=3, dtype="bfloat16", output=RUN / "eval")
NEEDLE = lr.EvalOptions(
    chat="off",
    documents=2,
    retrieval_lengths=(8192, 16384),
    trials=3,
    depths=(0.1, 0.5, 0.9),
    dtype="bfloat16",
    output=Path("build/smollm2-eval"),
)


def main() -> None:
    """Run the steps that are not done yet."""
    result = lr.search("smollm2", length=LENGTH, data="stdlib", method="paper", output=RUN, options=SEARCH)
    extension = result.extension
    candidates = {name: lr.scheme(name, extension.rope, LENGTH) for name in ("pi", "ntk", "yarn", "heuristic")}
    candidates["searched"] = extension.long
    results = lr.evaluate("smollm2", candidates=candidates, lengths=LENGTHS, data="stdlib", options=EVALUATION)
    record = {
        "perplexity": {name: summary(results, name) for name in results.candidates},
        "documents": results.corpora["stdlib"]["documents"],
        "search": extension.long.provenance,
        "provenance": results.provenance,
        "factors": list(extension.long.factors),
    }
    write_json(RESULTS / "smollm2-16k.json", record)
    model, tokenizer = lr.load("smollm2", dtype="bfloat16")
    if not CHECKPOINT.exists():
        lr.export(model, tokenizer, extension, CHECKPOINT)
    if not (RUN / "reloaded.json").exists():
        write_json(RUN / "reloaded.json", reload(model, record))
    write_json(RESULTS / "smollm2-16k-reloaded.json", json.loads((RUN / "reloaded.json").read_text()))


def summary(results: lr.EvalResults, candidate: str) -> dict[str, Any]:
    """Return the perplexities by length, and the perplexity of the last quarter of the positions."""
    records = results["perplexity"][candidate]
    last = [stretch for stretch in results["positions"][candidate] if stretch.start >= 3 * LENGTH // 4]
    losses, counts = [stretch.loss for stretch in last], [stretch.end - stretch.start for stretch in last]
    return {
        "lengths": [record.model_dump(exclude={"corpus"}) for record in records],
        "last_quarter": float(np.exp(np.average(losses, weights=counts))),
    }


def reload(model: PreTrainedModel, record: dict[str, Any]) -> dict[str, Any]:
    """Return the perplexity of the first test document by the exported folder alone, and the parity of its logits."""
    options = lr.EvalOptions(documents=1, dtype="bfloat16")
    alone = lr.evaluate(str(CHECKPOINT), lengths=[LENGTH], data="stdlib", options=options)
    patched = record["perplexity"]["searched"]["lengths"][-1]["losses"][0]
    check = lr.check_parity(CHECKPOINT, model)
    return {
        "from_pretrained": alone["perplexity"]["original"][0].perplexity,
        "patched": float(np.exp(patched)),
        "check": [{**asdict(parity), "ok": parity.ok} for parity in check],
        "document": record["documents"][0],
        "length": LENGTH,
        "provenance": provenance(),
    }


def evaluate_needle() -> None:
    """Measure perplexity on two test documents and one needle at three depths; write results and report."""
    rope = lr.Rope.of(load_config("smollm2"))
    factors = json.loads((RESULTS / "smollm2-16k.json").read_text())["factors"]
    attention = lr.attention_factor("su", rope, LENGTH)
    searched = lr.Scaling(factors, attention_factor=attention, scheme="searched", length=LENGTH)
    candidates = {name: lr.scheme(name, rope, LENGTH) for name in ("yarn", "heuristic")}
    candidates |= {"searched": lr.Extension.of(rope, searched)}
    results = lr.evaluate(
        "smollm2",
        candidates=candidates,
        lengths=(2048, 8192, 16384),
        data="stdlib",
        retrieval=["niah_single_2"],
        options=NEEDLE,
    )
    results.save(RESULTS / "smollm2-eval" / "results.json")
    lr.report(results, RESULTS / "smollm2-eval" / "report.html")


if __name__ == "__main__":
    evaluate_needle() if sys.argv[1:] == ["eval"] else main()
