"""Measure the part of a candidate's evaluation that is not the model's: factors, tables of phases, the loss.

    make benchmark-overhead        # minutes on two cores

All is in float32, because the rest would seem small where bfloat16 slows the model down. Reported are medians of three
evaluations after a rehearsal.
The backbone and the head are the model's; ``rest_over_backbone`` is the rest. Results in
``benchmarks/results/overhead.json``.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import longrope as lr
from longrope.provenance import provenance
from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parent / "results" / "overhead.json"
CELLS = (("tiny", 2048), ("tiny", 16384), ("smollm2", 8192))


def main() -> None:
    """Measure all models and lengths."""
    measurements = {}
    for name, length in CELLS:
        measurements[f"{name} {length}"] = candidate(name, length)
        print(name, length, measurements[f"{name} {length}"], flush=True)
        write_json(RESULTS, {"cells": measurements, "provenance": provenance()})


def candidate(name: str, length: int) -> dict[str, float]:
    """Return the seconds in the backbone, in the head and in all."""
    model, _ = lr.load(name, dtype="float32")
    rope = lr.Rope.of(model)
    tokens = np.random.default_rng(0).integers(10, 2000, (1, length))
    objective = lr.ModelObjective(model, lr.perplexity_texts(tokens))
    spent = {"backbone": 0.0, "head": 0.0}
    began: list[float] = []
    modules: dict[str, Any] = {"backbone": model.base_model, "head": model.get_output_embeddings()}
    for field, module in modules.items():

        def ended(*_: Any, field: str = field) -> None:
            spent[field] += time.perf_counter() - began.pop()

        module.register_forward_pre_hook(lambda *_: began.append(time.perf_counter()))
        module.register_forward_hook(ended)
    rows = []
    for turn in range(4):
        spent.update(backbone=0.0, head=0.0)
        started = time.perf_counter()
        yarn = replace(lr.scheme("yarn", rope, 4 * rope.original_length), attention_factor=1.0 + turn / 100)
        list(objective.evaluate([[(yarn, 0)]], gradient=False))
        rows.append({**spent, "all": time.perf_counter() - started})
    medians = {field: median(row[field] for row in rows[1:]) for field in rows[0]}
    rest = median((row["all"] - row["backbone"] - row["head"]) / row["backbone"] for row in rows[1:])
    return medians | {"rest_over_backbone": rest}


if __name__ == "__main__":
    main()
