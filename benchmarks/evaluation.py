"""Perplexity of one text with longrope, with full logits and with lm-evaluation-harness's rolling log-likelihood.

    make benchmark-evaluation      # half an hour on two cores

The model is SmolLM2-135M in float32, the text is one window. Every run is a process of its own, and the methods take
turns. Memory is the peak above the loaded model. Results in ``benchmarks/results/evaluation.json``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from measuring import measure_in_processes, measure_pass, medians
from torch.nn.functional import cross_entropy

import longrope as lr
from longrope.data.split import split_documents

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
METHODS = ("ours", "full logits", "lm-eval")
TURNS = {"2048": 3, "16384": 1}  # of each method, by length


def summarize(runs: dict[str, Any]) -> dict[str, Any]:
    """Return memory and speed against ours (medians) and the difference of the losses, by length and method."""
    ratios = {}
    for length in TURNS:
        reference = medians(runs, f"{length} ours")
        for method in METHODS[1:]:
            other = medians(runs, f"{length} {method}")
            if reference and other:
                ratios[f"{length} {method}"] = {
                    "memory over ours": other["peak_bytes"] / reference["peak_bytes"],
                    "our speed over theirs": other["seconds"] / reference["seconds"],
                    "relative difference of the mean loss": abs(other["loss"] / reference["loss"] - 1),
                }
    return ratios


def measure(tokens: str, method: str) -> dict[str, float]:
    """Return what `measure_pass` measures of one method; the loss is the mean in nats."""
    length = int(tokens)
    model, tokenizer = lr.load("smollm2", dtype="float32")
    text = max((document.text for document in split_documents(lr.load_documents("stdlib"))["test"]), key=len)
    harness: Any = HFLM(pretrained=model, tokenizer=tokenizer, max_length=length)  # pyright: ignore
    text = tokenizer.decode(harness.tok_encode(text)[:length])
    ids = np.array([[harness.prefix_token_id, *harness.tok_encode(text)][: length + 1]])
    request = Instance("loglikelihood_rolling", {}, (text,), 0)

    @torch.inference_mode()
    def full() -> float:
        logits = model(input_ids=torch.from_numpy(ids[:, :-1]), use_cache=False).logits
        return float(cross_entropy(logits[0].float(), torch.from_numpy(ids[0, 1:])))

    count = ids.shape[1] - 1
    passes: dict[str, Callable[[], float]] = {
        "ours": lambda: float(lr.token_losses(model, ids).mean(dtype=float)),
        "full logits": full,
        "lm-eval": lambda: -harness.loglikelihood_rolling([request], disable_tqdm=True)[0] / count,
    }
    return measure_pass(passes[method])


if __name__ == "__main__":
    measure_in_processes(RESULTS, TURNS, METHODS, measure, summarize)
