"""Do we score as lm-evaluation-harness does? The same prompts through both, on SmolLM2 at 2,048 tokens.

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
    """Score each task both ways and say where they differ."""
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
        made = make_prompts(task, tokenizer, length=length, trials=trials, texts=texts)
        prompts = [str(tokenizer.decode(probe.tokens)) for probe in made]
        # the harness reads texts, so that we take their tokens too: at the borders of pieces they may be others
        read = [np.array(tokenizer(prompt, verbose=False)["input_ids"], dtype=np.int64) for prompt in prompts]
        probes = [replace(probe, tokens=tokens) for probe, tokens in zip(made, read, strict=True)]
        ours = score_prompts(model, tokenizer, probes)
        theirs = harness(wrapped(pretrained=model, tokenizer=tokenizer, max_length=2 * length), task, probes, prompts)
        pairs = list(zip(ours, theirs["samples"], strict=True))
        rows[task] = {
            "ours": fmean(outcome.score for outcome in ours),
            "lm_eval": theirs["score"],
            "same_scores": sum(outcome.score == score for outcome, (score, _) in pairs),
            "same_texts": sum(outcome.text.strip() == text.strip() for outcome, (_, text) in pairs),
            "same_tokens": sum(np.array_equal(one.tokens, tokens) for one, tokens in zip(made, read, strict=True)),
            "choice": fmean(bool(outcome.choice) for outcome in ours) if probes[0].wrong else None,
        }
        print(task, json.dumps(rows[task]), flush=True)
    if not sys.argv[1:]:
        settings = {"model": name, "length": length, "trials": trials, "data": source}
        write_json(RESULTS, settings | {"tasks": rows, "provenance": provenance()})


def harness(model: Any, task: str, probes: list[Prompt], prompts: list[str]) -> dict[str, Any]:
    """The harness's score, and (score, text) of each prompt."""
    BUILD.mkdir(parents=True, exist_ok=True)
    length, lines = str(len(probes[0].tokens)), BUILD / f"{task}.jsonl"
    rows = [
        {"input": prompt, "outputs": probe.answers, "max_length": int(length)}
        for prompt, probe in zip(prompts, probes, strict=True)
    ]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (BUILD / "scoring.py").write_text(SCORING, encoding="utf-8")
    metrics = "".join(METRIC.format(length=number) for number in {length, "4096"})  # theirs has 4096 in any case
    text = TASK.format(task=task, file=lines.resolve(), room=probes[0].room, metrics=metrics)
    (BUILD / f"{task}.yaml").write_text(text, encoding="utf-8")
    manager, name = TaskManager(include_path=str(BUILD), include_defaults=False), f"longrope_{task}"
    evaluate: Any = simple_evaluate
    found = evaluate(model=model, tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=True)
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    each = [(sample[length], sample["resps"][0][0]) for sample in samples]
    return {"score": found["results"][name][f"{length},none"], "samples": each}


if __name__ == "__main__":
    main()
