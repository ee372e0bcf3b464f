"""Perplexity of one text with longrope, with full logits and with lm-evaluation-harness's rolling log-likelihood.

    make benchmark-evaluation      # half an hour on two cores

The model is SmolLM2-135M in float32, the text is one window. Every run is a process of its own, and the methods take
turns. Memory is the peak above the loaded model. Results in ``benchmarks/results/evaluation.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from measuring import status
from torch.nn.functional import cross_entropy

from longrope.data.documents import load_documents
from longrope.data.split import split_documents
from longrope.longcontext.token_losses import token_losses
from longrope.models.load import load
from longrope.provenance import provenance
from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
METHODS = ("ours", "full logits", "lm-eval")
TURNS = {2048: 3, 16384: 1}  # of each method, by length


def main() -> None:
    """Run every method that has no result yet."""
    if len(sys.argv) > 1:
        print(json.dumps(run(sys.argv[1], int(sys.argv[2]))))
        return
    runs: dict[str, Any] = json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() else {}
    for length, turns in TURNS.items():
        for turn in range(turns):
            for method in METHODS:
                key = f"{length} {method} {turn}"
                if key not in runs:
                    command = [sys.executable, __file__, method, str(length)]
                    completed = subprocess.run(command, check=True, capture_output=True, text=True)
                    runs[key] = json.loads(completed.stdout.splitlines()[-1])
                    write_json(RESULTS, {"cells": runs, "summary": summary(runs), "provenance": provenance()})
                    print(key, runs[key], flush=True)
    print(json.dumps(summary(runs), indent=1))


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """Return memory and speed against ours (medians) and the difference of the losses, by length and method."""
    ratios = {}
    for length in TURNS:
        by_method = {m: [run for key, run in runs.items() if key.startswith(f"{length} {m} ")] for m in METHODS}
        if not all(by_method.values()):
            continue
        medians = {
            method: {field: median(run[field] for run in turns) for field in turns[0]}
            for method, turns in by_method.items()
        }
        ours = medians["ours"]
        for method in METHODS[1:]:
            ratios[f"{length} {method}"] = {
                "memory over ours": medians[method]["peak_bytes"] / ours["peak_bytes"],
                "our speed over theirs": medians[method]["seconds"] / ours["seconds"],
                "relative difference of the mean loss": abs(medians[method]["loss"] / ours["loss"] - 1),
            }
    return ratios


def run(method: str, length: int) -> dict[str, float]:
    """Return the peak bytes above the loaded model, the seconds of one pass, and the mean loss in nats."""
    torch.manual_seed(0)
    model, tokenizer = load("smollm2", dtype="float32")
    text = max((document.text for document in split_documents(load_documents("stdlib"))["test"]), key=len)
    harness: Any = HFLM(pretrained=model, tokenizer=tokenizer, max_length=length)  # pyright: ignore
    ids = harness.tok_encode(text)[:length]
    text = tokenizer.decode(ids)
    tokens = np.array([[harness.prefix_token_id, *harness.tok_encode(text)][: length + 1]])
    request = Instance("loglikelihood_rolling", {}, (text,), 0)

    @torch.inference_mode()
    def full() -> float:
        ids = torch.from_numpy(tokens)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        return float(cross_entropy(logits[0].float(), ids[0, 1:], reduction="sum"))

    passes: dict[str, Callable[[], float]] = {
        "ours": lambda: float(token_losses(model, tokens).sum(dtype=float)),
        "full logits": full,
        "lm-eval": lambda: -harness.loglikelihood_rolling([request], disable_tqdm=True)[0],
    }
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of loading
    before, started = status("VmRSS"), time.perf_counter()
    total = passes[method]()
    seconds = time.perf_counter() - started
    count = tokens.shape[1] - 1
    return {"peak_bytes": status("VmHWM") - before, "seconds": seconds, "loss": total / count}


if __name__ == "__main__":
    main()
