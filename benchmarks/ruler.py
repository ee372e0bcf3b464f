"""RULER on SmolLM2: our scores beside lm-evaluation-harness's, the seconds of both, and the same prompts through both.

    make benchmark-ruler                   # hours on one core; continues where it stopped
    python benchmarks/ruler.py tiny 512 4  # another model, length and number of trials: nothing is written

*ours*: our prompts, our scorer. *lm_eval*: the harness's task, its prompts, its ``hf`` model. *same prompts*: the
harness's prompts through our scorer, which generates no more once a text has all answers. *shared*: prompts of ours
that ask ten questions of one document, which is read once. The harness makes prompts for six tasks without a download;
the essays of the others are this Python's library. qa_1 and qa_2 need a download. Seconds are of the wall clock and of
the processor. Prompts are plain (``chat="off"``), as the harness's are by default. Results in
``benchmarks/results/ruler.json``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import nltk
import numpy as np
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM

import longrope as lr
from longrope.data.split import draw_tokens, split_documents
from longrope.evaluation.statistics import wilson_interval
from longrope.provenance import provenance
from longrope.storage.atomic import write_json
from longrope.tasks.prompts import Prompt
from longrope.tasks.registry import RULER, make_prompts
from longrope.tasks.scoring import PromptScore, score_prompts

RESULTS = Path(__file__).parent / "results" / "ruler.json"
TRIALS, LONGEST = {8192: 3, 2048: 10, 4096: 4}, 8192  # the longest first, which is measured for its seconds
QUESTIONS = 10  # of one document
DOCUMENTS = 4
HARNESS = {  # tasks that the harness makes without a download, by our name
    **{name: name for name in ("niah_single_1", "niah_multikey_2", "niah_multikey_3")},
    **{name: f"ruler_{name}" for name in ("vt", "cwe", "fwe")},
}
SHARED = ("niah_single_1", "niah_multikey_2")
nltk.download = lambda *_, **__: False  # its sentences are for essays only


class Bench:
    """A model, its tokenizer and documents, with the functions that measure a task at a length."""

    def __init__(self, name: str, length: int) -> None:
        self.model, self.tokenizer = lr.load(name, dtype="float32")
        source = "stdlib:unseen" if name == "tiny" else "stdlib"
        documents = split_documents(lr.load_documents(source))["test"]
        self.texts = draw_tokens(documents, self.tokenizer, length=length, count=DOCUMENTS).tokens

    def ours(self, task: str, length: int, trials: int, questions: int = 1) -> dict[str, Any]:
        """Score our prompts with our scorer."""
        request = {"length": length, "trials": trials, "texts": self.texts, "chat": "off", "questions": questions}
        prompts = make_prompts(task, self.tokenizer, **request)
        return self.scored(prompts)[0] | {"own_haystack": prompts[0].own_haystack}

    def scored(self, prompts: Sequence[Prompt]) -> tuple[dict[str, Any], list[PromptScore]]:
        """Score prompts with our scorer."""
        started = clocks()
        scores = score_prompts(self.model, self.tokenizer, prompts)
        seconds = clocks() - started
        tokens = sum(len(prompt.tokens) for prompt in prompts) / len(prompts)
        return summary([score.score for score in scores], seconds) | {"prompt_tokens": tokens}, scores

    def harness(self, task: str, length: int, trials: int) -> dict[str, Any]:
        """Run the harness's task, and its prompts through our scorer."""
        wrapped: Any = HFLM  # its decorators hide its parameters
        lm = wrapped(pretrained=self.model, tokenizer=self.tokenizer, max_length=2 * length)
        seconds: list[np.ndarray] = []
        generate = lm.generate_until

        def timed(requests: Any, **options: Any) -> Any:
            started = clocks()
            texts = generate(requests, **options)
            seconds.append(clocks() - started)
            return texts

        lm.generate_until = timed
        evaluate: Any = simple_evaluate
        with TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            metadata = {"tokenizer": folder, "max_seq_lengths": [length]}
            options = {"limit": trials, "metadata": metadata, "bootstrap_iters": 0, "log_samples": True}
            results = evaluate(model=lm, tasks=[HARNESS[task]], **options)
        samples = sorted(results["samples"][HARNESS[task]], key=lambda sample: sample["doc_id"])
        room = samples[0]["arguments"][0][1]["max_gen_toks"]
        texts = [sample["arguments"][0][0] for sample in samples]
        tokens = [np.array(self.tokenizer(text, verbose=False)["input_ids"], dtype=np.int64) for text in texts]
        prompts = [
            Prompt(ids, tuple(sample["doc"]["outputs"]), (), None, room)
            for ids, sample in zip(tokens, samples, strict=True)
        ]
        ours, scores = self.scored(prompts)
        pairs = list(zip(scores, samples, strict=True))
        equal = {
            "equal_scores": sum(score.score == sample[str(length)] for score, sample in pairs),
            "equal_texts": sum(_equal(score, sample["resps"][0][0]) for score, sample in pairs),
        }
        values = [float(sample[str(length)]) for sample in samples]
        return {"lm_eval": summary(values, np.sum(seconds, axis=0)), "same_prompts": ours | equal}


def _equal(score: PromptScore, text: str) -> bool:
    """Return whether our text is the harness's, or its beginning where ours ends as it has all answers."""
    ours, theirs = score.text.strip(), text.strip()
    return ours == theirs or (score.score == 1 and theirs.startswith(ours))


def clocks() -> np.ndarray:
    """Return the seconds of the wall clock and of this process on its processors."""
    return np.array([time.perf_counter(), time.process_time()])


def summary(scores: Sequence[float], seconds: np.ndarray) -> dict[str, Any]:
    """Return the mean score with its interval, and the seconds a prompt."""
    wall, cpu = (seconds / len(scores)).tolist()
    low, high = wilson_interval(sum(scores), len(scores))
    rates = {"score": sum(scores) / len(scores), "low": low, "high": high}
    return rates | {"trials": len(scores), "seconds": wall, "cpu_seconds": cpu}


def measures(bench: Bench, length: int, trials: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the measurements at a length by name; at the longest, those of the seconds alone."""
    harness, shared = [*HARNESS], [*SHARED]
    others = [task for task in RULER if task not in HARNESS and not task.startswith("qa")]
    if length == LONGEST:
        harness, shared, others = [SHARED[0]], [SHARED[0]], []
    return {
        **{f"harness {task}": lambda task=task: bench.harness(task, length, trials) for task in harness},
        **{f"shared {task}": lambda task=task: bench.ours(task, length, QUESTIONS, QUESTIONS) for task in shared},
        **{f"ours {task}": lambda task=task: bench.ours(task, length, trials) for task in [*harness, *others]},
    }


def main() -> None:
    """Measure what the results file lacks; print each measurement."""
    name, *numbers = sys.argv[1:] or ("smollm2",)
    lengths = {int(numbers[0]): int(numbers[1])} if numbers else TRIALS
    bench = Bench(name, max(lengths))
    rows: dict[str, Any] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() and not numbers else {}
    for length, trials in lengths.items():
        for key, measure in measures(bench, length, trials).items():
            if (key := f"{key} {length}") not in rows:
                rows[key] = measure()
                print(key, json.dumps(rows[key]), flush=True)
                if not numbers:
                    settings = {"model": name, "documents": DOCUMENTS, "chat": "off", "seed": 0}
                    write_json(RESULTS, settings | {"rows": rows, "provenance": provenance()})


if __name__ == "__main__":
    main()
