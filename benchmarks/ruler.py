"""Score the same prompts with longrope and with lm-evaluation-harness, on SmolLM2 at 2,048 tokens.

    make benchmark-ruler                   # ten minutes on one core
    python benchmarks/ruler.py tiny 512 4  # another model, length and number of trials: nothing is written

The harness gets our prompts as a task of its own in ``build/ruler``, generates with its own code and scores with the
functions of its RULER tasks. Results in ``benchmarks/results/ruler.json``.
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
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from longrope.data.documents import load_documents
from longrope.data.split import draw_tokens, split_documents
from longrope.models.load import load
from longrope.provenance import provenance
from longrope.storage.atomic import write_json
from longrope.tasks.prompts import Prompt
from longrope.tasks.registry import make_prompts
from longrope.tasks.scoring import score_prompts

BUILD, RESULTS = Path("build/ruler"), Path(__file__).parent / "results" / "ruler.json"
TASKS = ("niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multiquery")
DOCUMENTS = 4
SCORING = "from lm_eval.tasks.ruler.common_utils import aggregate_metrics, process_results\n"
METRIC = """\
  - metric: "{length}"
    aggregation: !function scoring.aggregate_metrics
    higher_is_better: true
"""
TASK = """\
task: longrope_{task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "{{{{input}}}}"
doc_to_target: "{{{{outputs}}}}"
generation_kwargs:
  do_sample: false
  max_gen_toks: {room}
  until: []
process_results: !function scoring.process_results
metric_list:
{metrics}
"""


def main() -> None:
    """Score each task both ways and print where they differ."""
    name, length, trials = sys.argv[1:] or ("smollm2", 2048, 5)
    length, trials = int(length), int(trials)
    model, tokenizer = load(str(name), dtype="float32")
    wrapped: Any = HFLM  # its decorators hide its parameters
    source = "stdlib:unseen" if name == "tiny" else "stdlib"
    texts = draw_tokens(
        split_documents(load_documents(source))["test"], tokenizer, length=length, count=DOCUMENTS
    ).tokens
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
    BUILD.mkdir(parents=True, exist_ok=True)
    length, lines = str(len(prompts[0].tokens)), BUILD / f"{task}.jsonl"
    rows = [
        {"input": text, "outputs": prompt.answers, "max_length": int(length)}
        for text, prompt in zip(texts, prompts, strict=True)
    ]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (BUILD / "scoring.py").write_text(SCORING, encoding="utf-8")
    metrics = "".join(METRIC.format(length=number) for number in {length, "4096"})  # its RULER tasks always have 4096
    config = TASK.format(task=task, file=lines.resolve(), room=prompts[0].room, metrics=metrics)
    (BUILD / f"{task}.yaml").write_text(config, encoding="utf-8")
    manager, name = TaskManager(include_path=str(BUILD), include_defaults=False), f"longrope_{task}"
    evaluate: Any = simple_evaluate
    results = evaluate(model=model, tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=True)
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    scores = [(sample[length], sample["resps"][0][0]) for sample in samples]
    return {"score": results["results"][name][f"{length},none"], "samples": scores}


if __name__ == "__main__":
    main()
