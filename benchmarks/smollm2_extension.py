"""SmolLM2-135M-Instruct fine-tuned from 8,192 to 32,768 tokens on a CPU, with an adapter that is on beyond 8,192 only.

    make benchmark-smollm2-extension                    # five hours on one core; continues where it stopped
    python benchmarks/smollm2_extension.py perplexity   # one part: texts, run, perplexity, retrieval

Texts are this Python's library and the sources of its documentation, from the Debian package
``python3.11-doc``. Rows are the original model, YaRN and the ramp for 32,768 tokens without training, and the adapter
with its ramp. A row with one set of factors at every length needs one pass over a document for all lengths up to its
own. Below 8,192 tokens the adapter's row is the original model; *merged* is what short context costs if the adapter
becomes part of the weights.
Results in ``benchmarks/results/smollm2-extension.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel

import longrope as lr
from longrope.data.documents import load_documents
from longrope.data.split import draw_tokens, split_documents
from longrope.data.stdlib import stdlib_documents
from longrope.evaluation.statistics import mean_error
from longrope.longcontext.token_losses import token_losses
from longrope.models.adapter import merge_adapter
from longrope.provenance import provenance
from longrope.stages.pipeline import extend
from longrope.stages.plan import parse_plan
from longrope.stages.run_folder import StagedRun, begin_run
from longrope.storage.atomic import write_json
from longrope.tasks.registry import make_prompts
from longrope.tasks.scoring import score_prompts

BUILD, RESULTS = Path("build/smollm2"), Path(__file__).parent / "results" / "smollm2-extension.json"
TEXTS, RUN = BUILD / "texts", BUILD / "32k"
L0, LENGTH, LENGTHS, DOCUMENTS, DTYPE = 8192, 32768, (2048, 4096, 8192, 16384, 32768), 4, "bfloat16"
TASKS, ASKED, QUESTIONS = ("passkey", "recall"), (8192, 16384, 32768), 6
PLAN = f"""\
version = 1
original_tokens = 2e12
export = "none"

[[stages]]
length = "32k"
factors = "ramp"

[stages.finetune]
steps = 60           # 245,760 tokens
batch = 2
rate = 1e-3
warmup = 0.06
window = "2k"
windows = "sparse"
short = 0.34         # for those who merge the adapter; up to 8,192 tokens it is off
answers = 3
lora = 8
merge = false
dtype = "{DTYPE}"
save_every = 6

[stages.finetune.distill]

[data]
source = "{TEXTS}"
train = "{TEXTS}"
needles = 0.5

[evaluation]
lengths = []
"""
LONG_FILE = 2**16  # characters of a file of documentation that is a document by itself


def texts() -> None:
    """Write the documents: one for each package of the library and each long file of the documentation."""
    if TEXTS.exists():
        return
    unpacked, folder = BUILD / "python3.11-doc", TEXTS.with_name("texts.new")
    unpacked.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    subprocess.run(["apt-get", "download", "python3.11-doc"], cwd=unpacked, check=True)
    subprocess.run(["dpkg", "-x", str(next(unpacked.glob("*.deb"))), str(unpacked)], check=True)
    root, parts = unpacked / "usr/share/doc/python3.11/html/_sources", defaultdict(list)
    for path in sorted(root.rglob("*.rst.txt")):
        text, part = path.read_text("utf-8"), path.relative_to(root).parts[0].removesuffix(".rst.txt")
        if len(text) < LONG_FILE:
            parts[part].append(text)
        else:
            (folder / f"docs-{part}-{path.name.removesuffix('.rst.txt')}.txt").write_text(text, "utf-8")
    joined = {part: "\n\n".join(found) for part, found in parts.items()}
    for part, text in joined.items():
        if len(text) >= LONG_FILE:
            (folder / f"docs-{part}.txt").write_text(text, "utf-8")
    rest = [text for text in joined.values() if len(text) < LONG_FILE]
    (folder / "docs.txt").write_text("\n\n".join(rest), "utf-8")
    for name, text in stdlib_documents():
        if name != "pydoc_data":  # which quotes the documentation
            (folder / f"code-{name}.txt").write_text(text, "utf-8")
    folder.rename(TEXTS)


def run() -> None:
    """Carry out the plan."""
    bar = tqdm(desc="fine-tuning")

    def on_progress(_: str, done: int, total: int, note: str) -> None:
        bar.set_description(f"fine-tuning, {note}")
        bar.total, bar.n = total, done
        bar.refresh()

    staged = StagedRun(RUN, "smollm2", parse_plan(PLAN), dtype=DTYPE, on_progress=on_progress)
    begin_run(staged, resume=True)
    extend(staged)


class Bench:
    """Models, factors and test documents."""

    rows: tuple[tuple[str, int], ...] = (
        ("adapter", LENGTH),
        ("yarn", LENGTH),
        ("original", L0),
        ("merged", L0),
        ("ramp", LENGTH),
    )

    @cached_property
    def original(self) -> tuple[PreTrainedModel, Any]:
        """The model and its tokenizer."""
        return lr.load("smollm2", dtype=DTYPE)

    @cached_property
    def rope(self) -> lr.Rope:
        """Geometry of the model."""
        return lr.Rope.of(self.original[0])

    @cached_property
    def documents(self) -> np.ndarray:
        """``(DOCUMENTS, LENGTH)``: test documents."""
        split = split_documents(load_documents(str(TEXTS)), seed=0)["test"]
        drawn = draw_tokens(split, self.original[1], length=LENGTH, count=DOCUMENTS)
        print(drawn.names)
        return drawn.tokens

    def losses(self, row: str, number: int, longest: int) -> dict[str, float]:
        """Return the mean loss of a document up to every length, in nats."""
        with lr.patch(self.model(row), self.factors(row)) as model:
            losses = token_losses(model, self.documents[number : number + 1, :longest])[0]
        return {str(length): float(losses[: length - 1].mean()) for length in LENGTHS if length <= longest}

    def model(self, row: str) -> PreTrainedModel:
        """Return the weights of a row."""
        if row not in ("adapter", "merged"):
            return self.original[0]
        model, _ = lr.load(str(RUN / "stage-1" / "model"), dtype=DTYPE)
        return merge_adapter(model) if row == "merged" else model

    def factors(self, row: str) -> lr.Scaling | None:
        """Return the factors of a row."""
        name = {"adapter": "ramp", "ramp": "ramp", "yarn": "yarn"}.get(row)
        return None if name is None else lr.scheme(name, self.rope, LENGTH)


def measured(part: str, name: str, measure: Callable[[], Any]) -> Any:
    """Measure a value once; the results file keeps it."""
    record: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    done = record.setdefault(part, {})
    if name not in done:
        done[name] = measure()
        write_json(RESULTS, record | {"plan": PLAN, "provenance": provenance()})
    return done[name]


def perplexity() -> None:
    """Measure the mean loss of each document up to every length, and write the summary."""
    bench = Bench()
    for number in range(DOCUMENTS):
        for row, longest in bench.rows:
            measured("losses", f"{row} {number}", lambda row=row, n=number, size=longest: bench.losses(row, n, size))
    record = json.loads(RESULTS.read_text())
    write_json(RESULTS, record | {"perplexity": summary(record["losses"])})


def summary(losses: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return perplexities of the rows that are measured on all documents, and differences to another row in nats."""
    found: dict[str, Any] = {}
    for row, longest in Bench.rows:
        means = [losses.get(f"{row} {number}", {}) for number in range(DOCUMENTS)]
        against = "yarn" if longest == LENGTH else "original"
        others = [losses.get(f"{against} {number}", {}) for number in range(DOCUMENTS)]
        for length in (str(length) for length in LENGTHS if length <= longest and all(means)):
            values = [mean[length] for mean in means]
            found[f"{row} {length}"] = {"perplexity": float(np.exp(np.mean(values)))}
            if all(others) and row != against:
                differences = [one - other[length] for one, other in zip(values, others, strict=True)]
                difference, error = mean_error(differences)
                found[f"{row} {length}"] |= {"against": against, "nats": difference, "standard_error": error}
    return found


def retrieval() -> None:
    """Measure exact answers by task and length, six questions on a document."""
    bench = Bench()
    for length in ASKED:
        for task in TASKS:
            for row in ("adapter", "yarn") if length > L0 else ("original", "yarn"):
                key = f"{task} {length} {row}"

                def measure(row: str = row, task: str = task, length: int = length) -> dict[str, Any]:
                    model, tokenizer = bench.model(row), bench.original[1]
                    texts = bench.documents[:, :length]
                    request = {"length": length, "trials": 48, "texts": texts, "questions": QUESTIONS}
                    with lr.patch(model, bench.factors(row)):
                        scores = score_prompts(model, tokenizer, make_prompts(task, tokenizer, **request))
                    mean, error = mean_error([score.score for score in scores])
                    return {"rate": mean, "standard_error": error, "trials": len(scores)}

                print(key, measured("retrieval", key, measure), flush=True)


PARTS = {"texts": texts, "run": run, "perplexity": perplexity, "retrieval": retrieval}


def main() -> None:
    """Do all parts, or those that are named."""
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
