"""Measure one pass by two processes (`longrope.longcontext.context_parallel`) on two cores.

    make benchmark-spread        # a quarter of an hour on two cores

The `VARIANTS` compute the losses of one text in float32 in turn, three times. Reported are medians of the seconds, and
of the peak of a process above the loaded model. Results in ``benchmarks/results/spread.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch.distributed as dist
from measuring import reset_peak, status

from longrope.longcontext.context_parallel import context_parallel
from longrope.longcontext.token_losses import token_losses
from longrope.models.load import load
from longrope.provenance import provenance
from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parent / "results" / "spread.json"
CELLS = (("tiny", 32768), ("smollm2", 8192))
VARIANTS = {"one process": (1, 1), "two processes": (2, 1), "one process, two threads": (1, 2)}
TIMES = 3


def main() -> None:
    """Measure all models and lengths, or run one pass as one of the processes."""
    parser = argparse.ArgumentParser(description="Measure one pass by two processes.")
    parser.add_argument("--one-pass", nargs=2, metavar=("MODEL", "TOKENS"), help="used by the benchmark itself")
    arguments = parser.parse_args()
    if arguments.one_pass:
        one_pass(arguments.one_pass[0], int(arguments.one_pass[1]))
        return
    cells: dict[str, Any] = {}
    for name, length in CELLS:
        runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
        for _ in range(TIMES):
            for variant, (count, threads) in VARIANTS.items():
                runs[variant].append(launch(count, threads, name, length))
                print(name, length, variant, runs[variant][-1], flush=True)
        medians = {
            variant: {key: median(row[key] for row in rows) for key in rows[0]} for variant, rows in runs.items()
        }
        seconds = {variant: row["seconds"] for variant, row in medians.items()}
        losses = [row["loss"] for row in medians.values()]
        assert max(losses) - min(losses) < 1e-4
        faster = {variant: seconds["one process"] / value for variant, value in seconds.items()}
        cells[f"{name} {length}"] = {**medians, "times_as_fast_as_one_process": faster}
        write_json(RESULTS, {"cells": cells, "times": TIMES, "provenance": provenance()})


def launch(count: int, threads: int, name: str, length: int) -> dict[str, float]:
    """Run one pass with a number of processes and threads, and return what the first process measured."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    command += [__file__, "--one-pass", name, str(length)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    completed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(completed.stdout)


def one_pass(name: str, length: int) -> None:
    """Measure one pass as one of the processes; the first one prints."""
    dist.init_process_group("gloo")
    model, _ = load(name, dtype="float32")
    if dist.get_world_size() > 1:
        context_parallel(model)
    tokens = np.random.default_rng(0).integers(10, 2000, (1, length))
    token_losses(model, tokens[:, :4096])
    dist.barrier()
    before = reset_peak()
    started = time.perf_counter()
    loss = float(token_losses(model, tokens).mean())
    seconds, peak = time.perf_counter() - started, status("VmHWM") - before
    if dist.get_rank() == 0:
        print(json.dumps({"seconds": seconds, "peak_bytes": peak, "loss": loss}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
