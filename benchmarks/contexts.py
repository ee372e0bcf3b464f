"""What frozen contexts and the trust region bring to a search of ``tiny`` for 2,048 tokens, needles included.

    make benchmark-contexts                       # about half an hour on one core; does what is not in the results
    python benchmarks/contexts.py auto 0          # one row and seed

The row *auto* is the default method. *values alone* and *chains too* ask other kinds of questions, and *weight* gives
the answers another weight than 0.2. *full passes* is the same method on an objective without contexts, so that each
gradient is that of one whole sample. *on the test documents* minimises the loss of the documents that all rows are
tested on: the best that these factors could reach. *needles apart* is the method at commit 985f806, which planted
needles in a second copy of each document, and *before* the one at commit 3c16ff6, which compared every ten steps and
never went back: run this file with these versions installed. Each seed has its own split into search, held-out and test
documents. Times are process seconds of one thread. Results in ``benchmarks/results/contexts.json``.
"""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import longrope as lr
from longrope.data.documents import load_documents
from longrope.data.questions import ASKED_KINDS, KINDS
from longrope.data.search_texts import SearchTextSpec
from longrope.data.split import draw_tokens, split_documents
from longrope.evaluation.statistics import mean_error
from longrope.objectives import prepare_search
from longrope.objectives.model_loss import ModelObjective
from longrope.provenance import provenance
from longrope.search import options as search_options
from longrope.storage.atomic import write_json
from longrope.tasks.registry import make_prompts
from longrope.tasks.scoring import score_prompts

RESULTS = Path(__file__).parent / "results" / "contexts.json"
KINDS_OF_ROW = {"values alone": ("value",), "chains too": KINDS}
WEIGHTS = {"weight 0.1": 0.1, "weight 0.05": 0.05}
ROWS, SEEDS = ("auto", *KINDS_OF_ROW, *WEIGHTS, "full passes", "on the test documents"), (0, 1, 2)
LENGTH, DOCUMENTS, QUESTIONS = 2048, 8, 100


def measure(row: str, seed: int) -> dict[str, Any]:
    """Search, and measure the result and the closed forms on test documents."""
    torch.set_num_threads(1)
    model, tokenizer = lr.load("tiny", dtype="float32")
    started = time.process_time()
    splits = split_documents(load_documents("stdlib:unseen"), seed=seed)
    options = lr.SearchOptions(data_seed=seed)
    changed: AbstractContextManager[object] = nullcontext()
    if row == "full passes":
        changed = patch.object(ModelObjective, "context_tokens", ())
    elif row in WEIGHTS:
        options = replace(options, needles=WEIGHTS[row])
    elif row == "on the test documents":
        options = replace(options, search_documents=DOCUMENTS)
        changed = patch.object(prepare_search, "split_documents", lambda *_, **__: splits | {"search": splits["test"]})
    spec = partial(SearchTextSpec, kinds=KINDS_OF_ROW.get(row, ASKED_KINDS))
    with changed, patch.object(search_options, "SearchTextSpec", spec):
        result = lr.search(model, tokenizer, length=LENGTH, data="stdlib:unseen", options=options)
    seconds, outcome = time.process_time() - started, result.outcomes[0]
    texts = draw_tokens(splits["test"], tokenizer, length=LENGTH, count=DOCUMENTS).tokens
    prompts = make_prompts("recall", tokenizer, length=LENGTH, trials=QUESTIONS, texts=texts, questions=5)

    def tested(scaling: lr.Scaling) -> dict[str, float]:
        perplexity = lr.perplexity(model, texts, [LENGTH], scaling=scaling)[0].perplexity
        with lr.patch(model, scaling):
            scores = [prompt.score or 0.0 for prompt in score_prompts(model, tokenizer, prompts)]
        recall, error = mean_error(scores)
        return {"perplexity": perplexity, "recall": recall, "recall_error": error}

    rope = lr.Rope.of(model)
    closed_forms = {name: tested(lr.scheme(name, rope, LENGTH)) for name in lr.SCHEMES} if row == "auto" else {}
    return {
        "seconds": seconds,
        "token_evaluations": outcome.tokens,
        "improvements": [[step.tokens, step.loss] for step in outcome.improvements],
        "closed_form": getattr(outcome, "closed_form", ""),
        "factors": list(result.extension.long.factors),
        "test": tested(result.extension.long),
        "closed_forms": closed_forms,
        "provenance": provenance(),
    }


def main(names: list[str]) -> None:
    """Measure what is named, or all that is not in the results."""
    pairs = [(names[0], int(names[1]))] if names else [(row, seed) for seed in SEEDS for row in ROWS]
    record: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for row, seed in pairs:
        key = f"{row}, seed {seed}"
        if key not in record or names:
            values = measure(row, seed)
            record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}  # another process may have written
            record[key] = values
            write_json(RESULTS, record)
            print(key, json.dumps({name: record[key][name] for name in ("seconds", "token_evaluations", "test")}))
    compared = {key: run for key, run in record.items() if f"auto, seed {key[-1]}" in record}
    for row in sorted({key.split(", seed")[0] for key in compared}):
        runs = {key: run for key, run in compared.items() if key.startswith(f"{row}, seed")}
        yarn = [record[f"auto, seed {key[-1]}"]["closed_forms"]["yarn"]["perplexity"] for key in runs]
        ratios = [run["test"]["perplexity"] / reference for run, reference in zip(runs.values(), yarn, strict=True)]
        mean = math.prod(ratios) ** (1 / len(ratios))
        print(f"{row}: {mean:.3f} of YaRN's test perplexity ({', '.join(f'{ratio:.3f}' for ratio in ratios)})")


if __name__ == "__main__":
    main(sys.argv[1:])
