"""SmolLM2-135M-Instruct fine-tuned from 8,192 to 32,768 and to 2,097,152 tokens on a CPU, with adapters.

    make benchmark-smollm2-extension                         # eleven hours on one core; continues where it stopped
    python benchmarks/smollm2_extension.py perplexity yarn   # one part: texts, run, perplexity, retrieval

Texts are this Python's library and the sources of its documentation, from the Debian package ``python3.11-doc``. Rows
are the original model, and factors for each length without training and with the adapter that was trained with them.
A row has one set of factors at every length, so that one pass over a document serves all lengths up to its own. In use
the adapter is off up to 8,192 tokens; *merged* is what short context costs if it becomes part of the weights.
Results in ``benchmarks/results/smollm2-extension.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from smollm2_case import CASES
from tqdm import tqdm
from transformers import PreTrainedModel

import longrope as lr
from longrope.data.documents import load_documents
from longrope.data.split import draw_tokens, split_documents
from longrope.data.stdlib import stdlib_documents
from longrope.evaluation.statistics import mean_error
from longrope.formats.load_factors import load_extension
from longrope.longcontext.token_losses import token_losses
from longrope.models.adapter import merge_adapter
from longrope.provenance import provenance
from longrope.stages.begin_run import begin_run
from longrope.stages.pipeline import extend
from longrope.stages.plan import parse_plan
from longrope.stages.run_folder import StagedRun
from longrope.storage.atomic import write_json
from longrope.tasks.registry import make_prompts
from longrope.tasks.scoring import score_prompts

BUILD, RESULTS = Path("build/smollm2"), Path(__file__).parent / "results" / "smollm2-extension.json"
TEXTS = BUILD / "texts"
L0, LONGEST, LENGTHS, DOCUMENTS, DTYPE = 8192, 32768, (2048, 4096, 8192, 16384, 32768), 4, "bfloat16"
TASKS = ("niah_single_1", "niah_single_2", "recall")
ANSWER = 16  # most tokens of an answer; a wrong one would go on to RULER's 128
QUESTIONS = {8192: 12, 16384: 12, 32768: 24}  # on one document, by length
PLAN = f"""\
version = 1
original_tokens = 2e12
attention = "ATTENTION"
export = "none"

[[stages]]
length = "LENGTH"
factors = "FACTORS"

[stages.finetune]
steps = STEPS        # of 4,096 tokens
batch = 2
rate = 1e-3
warmup = 0.06
window = "2k"
windows = "sparse"
answers = 3
lora = 8
merge = false
dtype = "{DTYPE}"
save_every = 6

[data]
source = "{TEXTS}"
train = "{TEXTS}"
needles = 0.5
wordings = "WORDINGS"

[evaluation]
lengths = []
"""


@dataclass(frozen=True)
class Run:
    """A training.

    Args:
        length: Target length.
        factors: Scheme of the factors.
        attention: Attention factor.
        steps: Steps of two windows.
        wordings: Wordings of the planted lines.
    """

    length: str
    factors: str
    attention: str
    steps: int = 60
    wordings: str = "one"


RUNS = {
    "32k": Run("32k", "yarn", "yarn"),
    "32k-wordings": Run("32k", "yarn", "yarn", wordings="several"),
    "2m": Run("2m", "heuristic", "su"),
    "2m-180": Run("2m", "heuristic", "su", steps=180),
    "2m-wordings": Run("2m", "heuristic", "su", steps=180, wordings="several"),
}


@dataclass(frozen=True)
class Row:
    """A model to measure.

    Args:
        scheme: Scheme of the factors, or ``searched`` for those that ``benchmarks/smollm2.py 32k`` searched; None for
            plain RoPE.
        target: Length that the factors are for, in tokens.
        run: Training whose adapter is on, a key of `RUNS`; None for the original weights.
        merged: Whether the adapter is part of the weights, and the factors are not used.
        longest: Longest measured length in tokens.
        against: Row that the differences are to.
    """

    scheme: str | None = None
    target: int = L0
    run: str | None = None
    merged: bool = False
    longest: int = LONGEST
    against: str = "yarn"


ROWS = {
    "adapter": Row("yarn", 2**15, "32k"),
    "adapter, several wordings": Row("yarn", 2**15, "32k-wordings"),
    "yarn": Row("yarn", 2**15),
    "heuristic": Row("heuristic", 2**15),
    "searched": Row("searched", 2**15),
    "original": Row(longest=L0),
    "merged": Row(run="32k", merged=True, longest=L0, against="original"),
    "2m adapter": Row("heuristic", 2**21, "2m", against="2m yarn"),
    "2m adapter, 180 steps": Row("heuristic", 2**21, "2m-180", against="2m yarn"),
    "2m adapter, several wordings": Row("heuristic", 2**21, "2m-wordings", against="2m yarn"),
    "2m heuristic": Row("heuristic", 2**21, against="2m yarn"),
    "2m yarn": Row("yarn", 2**21),
    "2m ramp": Row("ramp", 2**21, longest=L0),
}
BEYOND = (
    *("adapter", "adapter, several wordings", "yarn", "searched"),
    *("2m adapter", "2m adapter, 180 steps", "2m adapter, several wordings"),
)
ASKED = {8192: ("original", "yarn"), 16384: BEYOND, 32768: BEYOND}
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


def plan(name: str) -> str:
    """Return the plan of a run as TOML."""
    filled = PLAN
    for field, value in asdict(RUNS[name]).items():
        filled = filled.replace(field.upper(), str(value))
    return filled


def run(name: str) -> None:
    """Carry out the plan of a run."""
    bar = tqdm(desc=name)

    def on_progress(_: str, done: int, total: int, note: str) -> None:
        bar.set_description(f"{name}, {note}")
        bar.total, bar.n = total, done
        bar.refresh()

    staged = StagedRun(BUILD / name, "smollm2", parse_plan(plan(name)), dtype=DTYPE, on_progress=on_progress)
    begin_run(staged, resume=True)
    extend(staged)
    training = staged.stage_folder(1) / "training.json"
    measured("training", name, lambda: {key: json.loads(training.read_text())[key] for key in ("seconds", "loss")})


class Bench:
    """Models, factors and test documents."""

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
        """``(DOCUMENTS, LONGEST)``: test documents."""
        split = split_documents(load_documents(str(TEXTS)), seed=0)["test"]
        drawn = draw_tokens(split, self.original[1], length=LONGEST, count=DOCUMENTS)
        return drawn.tokens

    def losses(self, row: Row, number: int) -> dict[str, float]:
        """Return the mean loss of a document up to every length, in nats."""
        tokens = self.documents[number : number + 1, : row.longest]
        with lr.patch(self.model(row), self.factors(row)) as model:
            losses = token_losses(model, tokens)[0]
        return {str(length): float(losses[: length - 1].mean()) for length in LENGTHS if length <= row.longest}

    def model(self, row: Row) -> PreTrainedModel:
        """Return the weights of a row."""
        if row.run is None:
            return self.original[0]
        model, _ = lr.load(str(BUILD / row.run / "stage-1" / "model"), dtype=DTYPE)
        return merge_adapter(model) if row.merged else model

    def factors(self, row: Row) -> lr.Scaling | None:
        """Return the factors of a row."""
        if row.scheme == "searched":
            return load_extension(CASES["32k"].search()).long
        return None if row.scheme is None else lr.scheme(row.scheme, self.rope, row.target)


def measured(part: str, name: str, measure: Callable[[], Any]) -> Any:
    """Measure a value once; the results file keeps it."""

    def read() -> dict[str, Any]:
        return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}

    done = read().get(part, {})
    if name not in done:
        done = {name: measure()}
        record = read()  # another process may have measured meanwhile
        record.setdefault(part, {}).update(done)
        write_json(RESULTS, record | {"plans": [plan(name) for name in RUNS], "provenance": provenance()})
    return done[name]


def perplexity(*names: str) -> None:
    """Measure the mean loss of each document up to every length, and write the summary.

    Args:
        names: Rows to measure, keys of `ROWS`.
    """
    bench = Bench()
    for number in range(DOCUMENTS):
        for name in names:
            measured("losses", f"{name} {number}", lambda row=ROWS[name], n=number: bench.losses(row, n))
    record = json.loads(RESULTS.read_text())
    write_json(RESULTS, record | {"perplexity": summary(record["losses"])})


def summary(losses: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return perplexities of the rows that are measured on all documents, and differences to another row in nats."""
    found: dict[str, Any] = {}
    for name, row in ROWS.items():
        means = [losses.get(f"{name} {number}", {}) for number in range(DOCUMENTS)]
        others = [losses.get(f"{row.against} {number}", {}) for number in range(DOCUMENTS)]
        for length in (str(length) for length in LENGTHS if length <= row.longest and all(means)):
            values = [mean[length] for mean in means]
            found[f"{name} {length}"] = {"perplexity": float(np.exp(np.mean(values)))}
            if all(others) and name != row.against:
                differences = [one - other[length] for one, other in zip(values, others, strict=True)]
                difference, error = mean_error(differences)
                found[f"{name} {length}"] |= {"against": row.against, "nats": difference, "standard_error": error}
    return found


def retrieval(*names: str) -> None:
    """Measure exact answers by task and length, several questions on a document.

    Args:
        names: Rows to measure, keys of `ROWS`, tasks and lengths; all tasks or lengths where none is named.
    """
    bench = Bench()
    lengths = [length for length in ASKED if str(length) in names] or list(ASKED)
    for length, rows in ((length, ASKED[length]) for length in lengths):
        for name in (name for name in rows if name in names):
            for task in [task for task in TASKS if task in names] or TASKS:

                def measure(row: Row = ROWS[name], task: str = task, length: int = length) -> dict[str, Any]:
                    texts = bench.documents[:, :length]
                    request = {"length": length, "trials": 48, "texts": texts, "questions": QUESTIONS[length]}
                    prompts = make_prompts(task, bench.original[1], chat="off", **request)
                    prompts = [replace(prompt, room=min(prompt.room, ANSWER)) for prompt in prompts]
                    with lr.patch(bench.model(row), bench.factors(row)) as model:
                        scores = score_prompts(model, bench.original[1], prompts)
                    mean, error = mean_error([score.score for score in scores])
                    losses = [score.loss for score in scores]  # of the answer, in nats a token
                    return {"rate": mean, "standard_error": error, "trials": len(scores), "losses": losses}

                key = f"{task} {length} {name}"
                print(key, measured("retrieval", key, measure), flush=True)


def main() -> None:
    """Do all parts, or the one that is named, for all rows or runs, or those that are named after it."""
    parts: dict[str, Callable[..., None]] = {"perplexity": perplexity, "retrieval": retrieval}
    part, names = sys.argv[1:2], sys.argv[2:]
    if not part or part == ["texts"]:
        texts()
    if not part or part == ["run"]:
        for name in names or RUNS:
            run(name)
    for name, measure in parts.items():
        if not part or part == [name]:
            measure(*(names or ROWS))


if __name__ == "__main__":
    main()
