"""Extending ``tiny`` 8 times and its export 8 times again, from its config alone, beside one run of both stages.

    make benchmark-composed-run       # seven minutes on one core

*Staged* is one run of two stages, 256 → 2,048 → 16,384 tokens. *Composed* is the first stage as a run, its export in
transformers' format, and the second stage as a run on this export, whose config carries the factors of the first. Both
fine-tune in the first stage and search in the second. The results hold the factors of both relative to plain RoPE,
their perplexity on the same test documents, and their largest differences. Plain transformers opens the last export.
Runs are in ``build/composed-run``, which is emptied first. Results in ``benchmarks/results/composed-run.json``.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM

import longrope as lr
from longrope.data.documents import load_documents
from longrope.data.split import draw_tokens, split_documents
from longrope.formats.load_factors import load_extension
from longrope.provenance import provenance
from longrope.stages.begin_run import begin_run
from longrope.stages.pipeline import extend
from longrope.stages.plan import parse_plan
from longrope.stages.run_folder import StagedRun
from longrope.storage.atomic import write_json

BUILD, RESULTS = Path("build/composed-run"), Path(__file__).parent / "results" / "composed-run.json"
LENGTHS, DOCUMENTS, SEED = (256, 2048, 16384), 2, 0
PLAN = """\
version = 1
export = "none"
[data]
source = "stdlib:unseen"
train = "stdlib"
needles = 0.5
[evaluation]
lengths = []
"""
FIRST = f"""\
[[stages]]
length = "2k"
factors = "ramp"
[stages.finetune]
steps = 60
batch = 1
rate = 3e-4
windows = "sparse"
window = "1k"
dtype = "float32"
seed = {SEED}
"""
SECOND = """\
[[stages]]
length = "16k"
[stages.search]
method = "cma"
documents = 1
window = "2k"
budget = "64k"
"""


def main() -> None:
    """Run both ways, compare them, and write the results."""
    shutil.rmtree(BUILD, ignore_errors=True)
    staged = run("staged", "tiny", FIRST + SECOND)
    first = run("first", "tiny", FIRST)
    exported = BUILD / "exported"
    model, tokenizer = lr.load(first.final_weights)
    lr.export(model, tokenizer, load_extension(first.folder / "extension.json"), exported)
    second = run("second", str(exported), SECOND)
    lr.export(str(exported), None, load_extension(second.folder / "extension.json"), BUILD / "exported-again")
    rows = {"staged": measure(staged), "composed": measure(second)}
    rows["opened by transformers"] = {"perplexity": opened(BUILD / "exported-again")}
    values = {name: np.array(list(row["perplexity"].values())) for name, row in rows.items()}
    factors = [np.array(rows[name]["long_factors"]) for name in ("staged", "composed")]
    differences = {
        "long_factors": float(np.abs(factors[1] / factors[0] - 1).max()),
        "attention_factor": abs(rows["composed"]["attention_factor"] / rows["staged"]["attention_factor"] - 1),
        "perplexity": float(np.abs(values["composed"] / values["staged"] - 1).max()),
        "perplexity of the export": float(np.abs(values["opened by transformers"] / values["staged"] - 1).max()),
    }
    print(differences)
    write_json(RESULTS, {"seed": SEED, "rows": rows, "relative_differences": differences, "provenance": provenance()})


def run(name: str, model: str, stages: str) -> StagedRun:
    """Carry out some stages on a model in float32."""
    staged_run = StagedRun(BUILD / name, model, parse_plan(PLAN + stages), dtype="float32")
    begin_run(staged_run, resume=False)
    extend(staged_run)
    return staged_run


def measure(staged_run: StagedRun) -> dict[str, Any]:
    """Return a run's factors relative to plain RoPE, its original length, and the perplexity with its long factors."""
    extension = load_extension(staged_run.folder / "extension.json")
    model, _ = lr.load(staged_run.final_weights, dtype="float32")
    long = extension.total.long
    return {
        "original_length": staged_run.rope.original_length,
        "long_factors": list(long.factors),
        "attention_factor": long.attention_factor,
        "perplexity": perplexities(model, extension.long),
    }


def opened(folder: Path) -> dict[str, float]:
    """Return the perplexity of a checkpoint that plain transformers opens."""
    return perplexities(AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval(), None)


def perplexities(model: Any, scaling: lr.Scaling | None) -> dict[str, float]:
    """Return the perplexity of test documents by length."""
    documents = split_documents(load_documents("stdlib:unseen"))["test"]
    texts = draw_tokens(documents, lr.load("tiny")[1], length=max(LENGTHS), count=DOCUMENTS).tokens
    rows = lr.perplexity(model, texts, LENGTHS, scaling=scaling)
    return {str(length): row.perplexity for length, row in zip(LENGTHS, rows, strict=True)}


if __name__ == "__main__":
    main()
