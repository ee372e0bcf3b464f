"""Measure one pass by two processes (`longrope.longcontext.context_parallel`) on two cores.

    make benchmark-spread        # a quarter of an hour on two cores

The `VARIANTS` compute the losses of one text in float32 in turn, three times. Reported are medians of the seconds, and
of the peak of a process above the loaded model. Results in ``benchmarks/results/spread.json``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from measuring import measure_pass, medians, run_script

import longrope as lr
from longrope.provenance import provenance
from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parent / "results" / "spread.json"
CELLS = (("tiny", 32768), ("smollm2", 8192))
VARIANTS = {"one process": (1, 1), "two processes": (2, 1), "one process, two threads": (1, 2)}
TIMES = 3


def main() -> None:
    """Measure all models and lengths, or run one pass as one of the processes."""
    if len(sys.argv) > 1:
        one_pass(sys.argv[1], int(sys.argv[2]))
        return
    results: dict[str, Any] = {}
    for name, length in CELLS:
        runs: dict[str, dict[str, float]] = {}
        for turn in range(TIMES):
            for variant, (count, threads) in VARIANTS.items():
                words = ("-m", "torch.distributed.run", "--nproc-per-node", str(count), __file__, name, str(length))
                runs[f"{variant}: {turn}"] = run_script(*words, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
                print(name, length, variant, runs[f"{variant}: {turn}"], flush=True)
        rows = {variant: medians(runs, f"{variant}:") for variant in VARIANTS}
        losses = [row["loss"] for row in rows.values()]
        assert max(losses) - min(losses) < 1e-4
        faster = {variant: rows["one process"]["seconds"] / row["seconds"] for variant, row in rows.items()}
        results[f"{name} {length}"] = {**rows, "times_as_fast_as_one_process": faster}
        write_json(RESULTS, {"cells": results, "times": TIMES, "provenance": provenance()})


def one_pass(name: str, length: int) -> None:
    """Measure one pass as one of the processes; the first one prints."""
    dist.init_process_group("gloo")
    model, _ = lr.load(name, dtype="float32")
    if dist.get_world_size() > 1:
        lr.context_parallel(model)
    tokens = np.random.default_rng(0).integers(10, 2000, (1, length))
    lr.token_losses(model, tokens[:, :4096])
    dist.barrier()
    measured = measure_pass(lambda: float(lr.token_losses(model, tokens).mean()))
    if dist.get_rank() == 0:
        print(json.dumps(measured))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
