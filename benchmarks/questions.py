"""Do ten questions of one document score as ten documents with one question each, and what do they save?

    make benchmark-questions          # five minutes on one core

``recall`` on ``tiny`` with YaRN's factors of each length, 100 questions on the same ten test documents: one on each
text, which holds one line, and five or ten on a text that holds as many lines. The last are also asked one by one, each
with a pass of its own (*alone*). Reported are the rate of exact recall with its 95% interval (Wilson), the loss of the
recalled words, and the CPU seconds. Results in ``benchmarks/results/questions.json``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from longrope.data.documents import load_documents
from longrope.data.split import draw_tokens, split_documents
from longrope.evaluation.statistics import mean_error
from longrope.models.load import load
from longrope.models.patch import patch
from longrope.provenance import provenance
from longrope.rope import Rope
from longrope.schemes import scheme
from longrope.storage.atomic import write_json
from longrope.tasks.registry import make_prompts
from longrope.tasks.scoring import PromptScore, score_prompts

RESULTS = Path(__file__).parent / "results" / "questions.json"
LENGTHS, QUESTIONS, TRIALS, DOCUMENTS, Z = (512, 1024, 2048), (1, 5, 10), 100, 10, 1.96


def main() -> None:
    """Measure every length with each number of questions, and write the results."""
    model, tokenizer = load("tiny", dtype="float32")
    documents = split_documents(load_documents("stdlib:unseen"))["test"]
    texts = draw_tokens(documents, tokenizer, length=max(LENGTHS), count=DOCUMENTS).tokens
    rows = []
    for length in LENGTHS:
        with patch(model, scheme("yarn", Rope.of(model), length)):
            for questions in QUESTIONS:
                request = {"length": length, "trials": TRIALS, "texts": texts, "questions": questions}
                prompts = make_prompts("recall", tokenizer, **request)
                ways = {"shared": prompts, "alone": [replace(prompt, shared=0) for prompt in prompts]}
                for way, asked in ways.items() if questions == QUESTIONS[-1] else [("shared", prompts)]:
                    score_prompts(model, tokenizer, asked[:1])
                    started = time.process_time()
                    scores = score_prompts(model, tokenizer, asked)
                    seconds = {"cpu_seconds": time.process_time() - started}
                    rows.append({"length": length, "questions": questions, "way": way, **summary(scores), **seconds})
                    print(rows[-1])
    write_json(RESULTS, {"task": "recall", "trials": TRIALS, "rows": rows, "provenance": provenance()})


def summary(scores: Sequence[PromptScore]) -> dict[str, Any]:
    """Return the rate of exact recall with its interval, and the loss of the recalled words."""
    values = [score.score for score in scores]
    rate, count = float(np.mean(values)), len(values)
    center, spread = rate + Z**2 / (2 * count), Z * (rate * (1 - rate) / count + (Z / (2 * count)) ** 2) ** 0.5
    interval = [(center + sign * spread) / (1 + Z**2 / count) for sign in (-1, 1)]
    loss, loss_error = mean_error([score.loss for score in scores if score.loss is not None])
    return {"rate": rate, "interval": interval, "loss": loss, "loss_standard_error": loss_error}


if __name__ == "__main__":
    main()
