"""SmolLM2-135M from 8,192 to 16,384 tokens on a CPU: search, compare on test documents, export, reload.

    make benchmark-smollm2

Each step runs once, so the benchmark resumes after an interrupt. The results are in
``benchmarks/results/smollm2-16k*.json``. The journals of search and evaluation are in ``build/smollm2-16k*``; remove
these folders to measure everything again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import longrope as lr
from longrope.data.split import draw_tokens, split_documents
from longrope.formats.load_factors import load_extension
from longrope.provenance import provenance
from longrope.storage.atomic import write_json

LENGTH, LENGTHS = 16384, (2048, 4096, 8192, 12288, 16384)
RUN, CHECKPOINT = Path("build/smollm2-16k"), Path("build/smollm2-16k-checkpoint")
RESULTS = Path(__file__).parent / "results"
SEARCH = "smollm2 --length 16k --data stdlib --dtype bfloat16 --method paper --population 8 --schemes yarn,ntk"
SEARCH += f" --needles 0 --budget {12 * LENGTH} --search-documents 1 --held-out-documents 1 --resume"
OPTIONS = lr.EvalOptions(documents=3, dtype="bfloat16", output=RUN / "eval")


def main() -> None:
    """Run the steps that are not done yet."""
    longrope("search", *SEARCH.split(), "-o", str(RUN))
    extension = load_extension(RUN / "extension.json")
    candidates = {name: lr.scheme(name, extension.rope, LENGTH) for name in ("pi", "ntk", "yarn", "heuristic")}
    candidates["searched"] = extension.long
    results = lr.evaluate("smollm2", candidates=candidates, lengths=LENGTHS, data="stdlib", options=OPTIONS)
    record = {
        "perplexity": {name: summary(results, name) for name in results.candidates},
        "documents": results.corpora["stdlib"]["documents"],
        "search": extension.long.provenance,
        "search_command": f"longrope search {SEARCH}",
        "provenance": results.provenance,
        "factors": list(extension.long.factors),
    }
    write_json(RESULTS / "smollm2-16k.json", record)
    if not CHECKPOINT.exists():
        longrope("export", "smollm2", "--factors", str(RUN), "-o", str(CHECKPOINT), "--dtype", "bfloat16")
    reload(record)


def summary(results: lr.EvalResults, candidate: str) -> dict[str, Any]:
    """Return the perplexities by length, and the perplexity of the last quarter of the positions."""
    records = results["perplexity"][candidate]
    last = [stretch for stretch in results["positions"][candidate] if stretch.start >= 3 * LENGTH // 4]
    losses, counts = [stretch.loss for stretch in last], [stretch.end - stretch.start for stretch in last]
    return {
        "lengths": [record.model_dump(exclude={"corpus"}) for record in records],
        "last_quarter": float(np.exp(np.average(losses, weights=counts))),
    }


def reload(record: dict[str, Any]) -> None:
    """Measure the first test document from the exported folder alone, and the parity of its logits."""
    path = RUN / "reloaded.json"
    if not path.exists():
        _, tokenizer = lr.load("smollm2")
        documents = split_documents(lr.load_documents("stdlib"))["test"]
        tokens = draw_tokens(documents, tokenizer, length=LENGTH, count=1).tokens
        (alone,) = lr.perplexity(lr.load(str(CHECKPOINT), dtype="bfloat16")[0], tokens, [LENGTH])
        patched = record["perplexity"]["searched"]["lengths"][-1]["losses"][0]
        command = [sys.executable, "-m", "longrope", "check", str(CHECKPOINT), "smollm2", "--json"]
        check = json.loads(subprocess.run(command, stdout=subprocess.PIPE).stdout)
        both = {"from_pretrained": alone.perplexity, "patched": float(np.exp(patched)), "check": check}
        write_json(path, both | {"document": record["documents"][0], "length": LENGTH, "provenance": provenance()})
    write_json(RESULTS / "smollm2-16k-reloaded.json", json.loads(path.read_text()))


def longrope(*arguments: str) -> None:
    """Run a command as a user would."""
    subprocess.run([sys.executable, "-m", "longrope", *arguments], check=True)


if __name__ == "__main__":
    main()
