"""Score the same prompts with longrope and with lm-evaluation-harness, on SmolLM2 at 2,048 tokens.

    make benchmark-ruler                   # ten minutes on one core
    python benchmarks/ruler.py tiny 512 4  # another model, length and number of trials: nothing is written

The harness gets our prompts as a task of its own, generates with its own code and scores with the functions of its
RULER tasks. Results in ``benchmarks/results/ruler.json``.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from statistics import fmean

import numpy as np
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks.ruler import common_utils

import longrope as lr
from longrope.data.split import draw_tokens, split_documents
from longrope.provenance import provenance
from longrope.storage.atomic import write_json
from longrope.tasks.prompts import Prompt
from longrope.tasks.registry import make_prompts
from longrope.tasks.scoring import score_prompts

RESULTS = Path(__file__).parent / "results" / "ruler.json"
TASKS = ("niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multiquery")
DOCUMENTS = 4


def main() -> None:
    """Score each task both ways and print where they differ."""
    name, length, trials = sys.argv[1:] or ("smollm2", 2048, 5)
    length, trials = int(length), int(trials)
    model, tokenizer = lr.load(str(name), dtype="float32")
    wrapped: Any = HFLM  # its decorators hide its parameters
    source = "stdlib:unseen" if name == "tiny" else "stdlib"
    documents = split_documents(lr.load_documents(source))["test"]
    texts = draw_tokens(documents, tokenizer, length=length, count=DOCUMENTS).tokens
    rows: dict[str, Any] = {}
    for task in TASKS:
        made_prompts = make_prompts(task, tokenizer, length=length, trials=trials, texts=texts)
        texts_of_prompts = [str(tokenizer.decode(prompt.tokens)) for prompt in made_prompts]
        # the harness tokenizes the text, which may give other tokens where two pieces meet, so we take its tokens
        tokens = [np.array(tokenizer(text, verbose=False)["input_ids"], dtype=np.int64) for text in texts_of_prompts]
        prompts = [replace(prompt, tokens=ids) for prompt, ids in zip(made_prompts, tokens, strict=True)]
        scores = score_prompts(model, tokenizer, prompts)
        lm = wrapped(pretrained=model, tokenizer=tokenizer, max_length=2 * length)
        harness_scores = harness(lm, task, prompts, texts_of_prompts)
        pairs = list(zip(scores, harness_scores["samples"], strict=True))
        rows[task] = {
            "ours": fmean(score.score for score in scores),
            "lm_eval": harness_scores["score"],
            "same_scores": sum(score.score == value for score, (value, _) in pairs),
            "same_texts": sum(score.text.strip() == text.strip() for score, (_, text) in pairs),
            "same_tokens": sum(np.array_equal(p.tokens, ids) for p, ids in zip(made_prompts, tokens, strict=True)),
            "choice": fmean(bool(score.choice) for score in scores) if prompts[0].wrong else None,
        }
        print(task, json.dumps(rows[task]), flush=True)
    if not sys.argv[1:]:
        settings = {"model": name, "length": length, "trials": trials, "data": source}
        write_json(RESULTS, settings | {"tasks": rows, "provenance": provenance()})


def harness(model: Any, task: str, prompts: list[Prompt], texts: list[str]) -> dict[str, Any]:
    """Return the harness's score, and (score, text) of each prompt."""
    length = len(prompts[0].tokens)
    pairs = zip(texts, prompts, strict=True)
    rows = [{"input": text, "outputs": prompt.answers, "max_length": length} for text, prompt in pairs]
    metrics = dict.fromkeys((str(length), "4096"))  # its RULER tasks always have 4096
    config = {
        "task": f"longrope_{task}",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{input}}",
        "doc_to_target": "{{outputs}}",
        "generation_kwargs": {"do_sample": False, "max_gen_toks": prompts[0].room, "until": []},
        "process_results": common_utils.process_results,
        "metric_list": [
            {"metric": metric, "aggregation": common_utils.aggregate_metrics, "higher_is_better": True}
            for metric in metrics
        ],
    }
    evaluate: Any = simple_evaluate
    results = evaluate(model=model, tasks=[config], bootstrap_iters=0, log_samples=True)
    samples = sorted(results["samples"][config["task"]], key=lambda sample: sample["doc_id"])
    scores = [(sample[str(length)], sample["resps"][0][0]) for sample in samples]
    return {"score": results["results"][config["task"]][f"{length},none"], "samples": scores}


if __name__ == "__main__":
    main()
