"""Compare a pass through a model with plain transformers, in memory and time: how far does one machine go?

    make benchmark-scale           # an hour on two cores; continues where it stopped

Both variants have the same bfloat16 weights and read the same text, one sequence. They run in turn, each pass in a new
process. A ``forward`` gives the loss of every token, a ``gradient`` also its gradient by the factors. ``plain`` is the
model as transformers has it, with all logits, and for the gradient with its activation checkpointing. Memory is the
peak above the loaded model. The longest length in 8 GB is extrapolated on the line through the shortest and longest.
Results in ``benchmarks/results/scale.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measuring import reset_peak, status
from torch.nn.functional import cross_entropy

from longrope.data.documents import load_documents
from longrope.data.split import split_documents
from longrope.data.weighted_text import perplexity_texts
from longrope.longcontext.token_losses import token_losses
from longrope.models.load import load
from longrope.models.patch import patch
from longrope.models.rotary_embedding import LongRoPE
from longrope.models.rotary_slot import RescaledRotary, find_rotary_slot
from longrope.objectives.factor_gradient import Differentiable
from longrope.objectives.model_loss import ModelObjective
from longrope.provenance import provenance
from longrope.schemes import scheme
from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parent / "results" / "scale.json"
VARIANTS = ("ours", "plain")
TURNS = {  # runs of each variant, in this order
    "forward smollm2 8192": 3,
    "forward smollm2 16384": 1,
    "gradient smollm2 4096": 1,
    "gradient smollm2 8192": 1,
    "forward tiny 16384": 3,
    "forward tiny 65536": 1,
    "forward smollm2 32768": 1,
    "forward tiny 131072": 1,
}
BUDGET = 8 * 2**30


def main() -> None:
    """Measure every pass that the results file lacks."""
    if len(sys.argv) > 1:
        kind, name, length, variant = sys.argv[1:]
        print(json.dumps(measure(kind, name, int(length), variant)))
        return
    runs: dict[str, Any] = json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() else {}
    for case, turns in TURNS.items():
        for turn, variant in product(range(turns), VARIANTS):
            if (key := f"{case} {variant} {turn}") not in runs:
                command = [sys.executable, __file__, *case.split(), variant]
                completed = subprocess.run(command, check=True, capture_output=True, text=True)
                runs[key] = json.loads(completed.stdout.splitlines()[-1])
                write_json(RESULTS, {"cells": runs, "summary": summary(runs), "provenance": provenance()})
                print(key, runs[key], flush=True)
    print(json.dumps(summary(runs), indent=1))


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """Return medians: memory and time of plain transformers over ours, and the longest length of each in 8 GB."""
    ratios: dict[str, Any] = {}
    peaks: dict[str, dict[int, float]] = {}
    for case in TURNS:
        by_variant = [[run for key, run in runs.items() if key.startswith(f"{case} {name} ")] for name in VARIANTS]
        if not all(by_variant):
            continue
        ours, plain = ({field: median(run[field] for run in same) for field in same[0]} for same in by_variant)
        ratios[case] = {
            "memory over ours": plain["peak_bytes"] / ours["peak_bytes"],
            "our time over theirs": ours["seconds"] / plain["seconds"],
            "difference of the mean loss": abs(plain["loss"] - ours["loss"]),
        }
        kind, name, length = case.split()
        for variant, medians in (("ours", ours), ("plain", plain)):
            room = BUDGET - medians["loaded_bytes"]
            peaks.setdefault(f"{kind} {name} {variant}", {})[int(length)] = medians["peak_bytes"] / room
    for name, shares in peaks.items():
        if len(shares) > 1:
            short, long = min(shares), max(shares)
            slope = (shares[long] - shares[short]) / (long - short)
            ratios[f"{name}: longest in 8 GB"] = int(long + (1 - shares[long]) / slope)
    return ratios


def measure(kind: str, name: str, length: int, variant: str) -> dict[str, float]:
    """Return the peak bytes above the loaded model, the seconds of one pass, and the mean loss in nats."""
    torch.manual_seed(0)
    model, tokenizer = load(name, dtype="bfloat16")
    texts = [document.text for document in split_documents(load_documents("stdlib"))["test"]]
    ids = np.concatenate([tokenizer(text)["input_ids"] for text in sorted(texts, key=len)[::-1][:40]])
    tokens = np.ascontiguousarray(ids[None, :length]).astype(np.int64)
    assert tokens.shape == (1, length)
    yarn = scheme("yarn", find_rotary_slot(model).rope, max(length, 2 * find_rotary_slot(model).rope.original_length))
    objective = ModelObjective(model, perplexity_texts(tokens))

    def ours() -> float:
        with patch(model, yarn):
            return float(token_losses(model, tokens).mean(dtype=float))

    @torch.inference_mode()
    def plain() -> float:
        with patch(model, yarn):
            logits = model(input_ids=torch.from_numpy(tokens), use_cache=False).logits
            return float(cross_entropy(logits[0, :-1].float(), torch.from_numpy(tokens[0, 1:])))

    def our_gradient() -> float:
        return next(iter(objective.evaluate([[(yarn, 0)]], gradient=True)))[1][0].loss

    def plain_gradient() -> float:
        rotary = find_rotary_slot(model)
        module = Differentiable(LongRoPE.static(rotary.rope, [yarn], reach=length))
        rotary.install(RescaledRotary(rotary.original, module))
        model.requires_grad_(False).train().gradient_checkpointing_enable({"use_reentrant": False})
        ids = torch.from_numpy(tokens)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        return float(loss.detach())

    passes: dict[str, Callable[[], float]] = {
        "forward ours": ours,
        "forward plain": plain,
        "gradient ours": our_gradient,
        "gradient plain": plain_gradient,
    }
    before = reset_peak()
    started = time.perf_counter()
    loss = passes[f"{kind} {variant}"]()
    seconds = time.perf_counter() - started
    return {"peak_bytes": status("VmHWM") - before, "loaded_bytes": before, "seconds": seconds, "loss": loss}


if __name__ == "__main__":
    main()
