"""How far one machine goes: a pass through a model, ours against plain transformers, in memory and time.

    make benchmark-scale           # an hour on two cores; continues where it stopped

Same weights (bfloat16), same text, one sequence, every cell a process of its own, the two ways in turn. A ``forward``
gives the loss of every token; a ``gradient`` also its slopes by the factors. ``plain`` is the model as transformers has
it, with all logits, and for the gradient with its activation checkpointing. Memory is the peak above the loaded model.
The longest length in 8 GB is extrapolated along the line through the shortest and the longest that were measured.
Results in ``benchmarks/results/scale.json``.
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
from measuring import status
from torch.nn.functional import cross_entropy

from longrope.data.documents import load_documents
from longrope.data.split import split_documents
from longrope.data.weighted_text import WeightedText
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
WAYS = ("ours", "plain")
TURNS = {  # of each way, in this order
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
    """Every cell that is not there yet."""
    if len(sys.argv) > 1:
        kind, name, length, way = sys.argv[1:]
        print(json.dumps(cell(kind, name, int(length), way)))
        return
    cells: dict[str, Any] = json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() else {}
    wanted = {
        f"{what} {way} {turn}": f"{what} {way}"
        for what, turns in TURNS.items()
        for turn in range(turns)
        for way in WAYS
    }
    for key, words in wanted.items():
        if key not in cells:
            command = [sys.executable, __file__, *words.split()]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            cells[key] = json.loads(done.stdout.splitlines()[-1])
            write_json(RESULTS, {"cells": cells, "summary": summary(cells), "provenance": provenance()})
            print(key, cells[key], flush=True)
    print(json.dumps(summary(cells), indent=1))


def summary(cells: dict[str, Any]) -> dict[str, Any]:
    """Medians: memory and time of plain transformers over ours, and how far each goes in 8 GB."""
    found: dict[str, Any] = {}
    peaks: dict[str, dict[int, float]] = {}
    for what in TURNS:
        by_way = {way: [cell for key, cell in cells.items() if key.startswith(f"{what} {way} ")] for way in WAYS}
        if not all(by_way.values()):
            continue
        ours, plain = ({field: median(one[field] for one in by_way[way]) for field in by_way[way][0]} for way in WAYS)
        found[what] = {
            "memory over ours": plain["peak_bytes"] / ours["peak_bytes"],
            "our time over theirs": ours["seconds"] / plain["seconds"],
            "difference of the mean loss": abs(plain["loss"] - ours["loss"]),
        }
        kind, name, length = what.split()
        for way, middle in (("ours", ours), ("plain", plain)):
            room = BUDGET - middle["loaded_bytes"]
            peaks.setdefault(f"{kind} {name} {way}", {})[int(length)] = middle["peak_bytes"] / room
    for who, shares in peaks.items():
        if len(shares) > 1:
            short, long = min(shares), max(shares)
            slope = (shares[long] - shares[short]) / (long - short)
            found[f"{who}: longest in 8 GB"] = int(long + (1 - shares[long]) / slope)
    return found


def cell(kind: str, name: str, length: int, way: str) -> dict[str, float]:
    """Peak bytes above the loaded model, seconds of one pass, and the mean loss in nats."""
    torch.manual_seed(0)
    model, tokenizer = load(name, dtype="bfloat16")
    texts = [document.text for document in split_documents(load_documents("stdlib"))["test"]]
    ids = np.concatenate([tokenizer(text)["input_ids"] for text in sorted(texts, key=len)[::-1][:40]])
    tokens = np.ascontiguousarray(ids[None, :length]).astype(np.int64)
    assert tokens.shape == (1, length)
    yarn = scheme("yarn", find_rotary_slot(model).rope, max(length, 2 * find_rotary_slot(model).rope.original_length))
    item = WeightedText(tokens[0], np.full(length - 1, 1 / (length - 1)))
    objective = ModelObjective(model, [item])

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
        given = torch.from_numpy(tokens)
        loss = model(input_ids=given, labels=given, use_cache=False).loss
        loss.backward()
        return float(loss.detach())

    ways: dict[str, Callable[[], float]] = {
        "forward ours": ours,
        "forward plain": plain,
        "gradient ours": our_gradient,
        "gradient plain": plain_gradient,
    }
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of loading
    before, started = status("VmRSS"), time.perf_counter()
    loss = ways[f"{kind} {way}"]()
    seconds = time.perf_counter() - started
    return {"peak_bytes": status("VmHWM") - before, "loaded_bytes": before, "seconds": seconds, "loss": loss}


if __name__ == "__main__":
    main()
