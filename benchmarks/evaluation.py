"""Perplexity of one text: ours against full logits and against lm-evaluation-harness's rolling log-likelihood.

    make benchmark-evaluation      # half an hour on two cores

Same model (SmolLM2-135M, float32), same text, one window, every cell a process of its own; the ways take turns.
Memory is the peak above the loaded model. Results in ``benchmarks/results/evaluation.json``.
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
WAYS = ("ours", "full logits", "lm-eval")
TURNS = {2048: 3, 16384: 1}  # of each way, by length


def main() -> None:
    """Every cell that is not there yet."""
    if len(sys.argv) > 1:
        print(json.dumps(cell(sys.argv[1], int(sys.argv[2]))))
        return
    cells: dict[str, Any] = json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() else {}
    for length, turns in TURNS.items():
        for turn in range(turns):
            for way in WAYS:
                key = f"{length} {way} {turn}"
                if key not in cells:
                    command = [sys.executable, __file__, way, str(length)]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    cells[key] = json.loads(done.stdout.splitlines()[-1])
                    write_json(RESULTS, {"cells": cells, "summary": summary(cells), "provenance": provenance()})
                    print(key, cells[key], flush=True)
    print(json.dumps(summary(cells), indent=1))


def summary(cells: dict[str, Any]) -> dict[str, Any]:
    """By length and way: memory and speed against ours (medians), and how far the sums of losses differ."""
    found = {}
    for length in TURNS:
        by_way = {way: [cell for key, cell in cells.items() if key.startswith(f"{length} {way} ")] for way in WAYS}
        if not all(by_way.values()):
            continue
        middle = {
            way: {field: median(one[field] for one in turns) for field in turns[0]} for way, turns in by_way.items()
        }
        ours = middle["ours"]
        for way in WAYS[1:]:
            found[f"{length} {way}"] = {
                "memory over ours": middle[way]["peak_bytes"] / ours["peak_bytes"],
                "our speed over theirs": middle[way]["seconds"] / ours["seconds"],
                "relative difference of the mean loss": abs(middle[way]["loss"] / ours["loss"] - 1),
            }
    return found


def cell(way: str, length: int) -> dict[str, float]:
    """Peak bytes above the loaded model, seconds of one pass, and the mean loss in nats."""
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
        given = torch.from_numpy(tokens)
        logits = model(input_ids=given[:, :-1], use_cache=False).logits
        return float(cross_entropy(logits[0].float(), given[0, 1:], reduction="sum"))

    ways: dict[str, Callable[[], float]] = {
        "ours": lambda: float(token_losses(model, tokens).sum(dtype=float)),
        "full logits": full,
        "lm-eval": lambda: -harness.loglikelihood_rolling([request], disable_tqdm=True)[0],
    }
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of loading
    before, started = status("VmRSS"), time.perf_counter()
    total = ways[way]()
    seconds = time.perf_counter() - started
    count = tokens.shape[1] - 1
    return {"peak_bytes": status("VmHWM") - before, "seconds": seconds, "loss": total / count}


if __name__ == "__main__":
    main()
