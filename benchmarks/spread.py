"""What a second process does for one pass: `longrope.models.spread` on two cores, one thread a process.

    make benchmark-spread        # ten minutes on two cores

Losses by token of one text in float32, by one process and by two in turn, three times; the median of the seconds and
the peak of a process above the loaded model. Results in ``benchmarks/results/spread.json``.
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
from measuring import status

from longrope.evaluation.loss import token_losses
from longrope.files import write_json
from longrope.models.load import load
from longrope.models.spread import spread
from longrope.report.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "spread.json"
CELLS = (("tiny", 32768), ("smollm2", 8192))
TIMES = 3


def main() -> None:
    """All cells, or one pass as one of the processes."""
    parser = argparse.ArgumentParser(description="What a second process does for one pass.")
    parser.add_argument("--one-pass", nargs=2, metavar=("MODEL", "TOKENS"), help="used by the benchmark itself")
    given = parser.parse_args()
    if given.one_pass:
        one_pass(given.one_pass[0], int(given.one_pass[1]))
        return
    cells: dict[str, Any] = {}
    for name, length in CELLS:
        found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
        for _ in range(TIMES):
            for count in found:
                found[count].append(launched(count, name, length))
                print(name, length, count, found[count][-1], flush=True)
        assert abs(found[1][0]["loss"] - found[2][0]["loss"]) < 1e-4
        of = {count: {key: median(row[key] for row in rows) for key in rows[0]} for count, rows in found.items()}
        cells[f"{name} {length}"] = {"one": of[1], "two": of[2], "times_faster": of[1]["seconds"] / of[2]["seconds"]}
        write_json(RESULTS, {"cells": cells, "times": TIMES, "threads_each": 1, "provenance": provenance()})


def launched(count: int, name: str, length: int) -> dict[str, float]:
    """What the first of so many processes measured."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    command += [__file__, "--one-pass", name, str(length)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout)


def one_pass(name: str, length: int) -> None:
    """In one of the processes."""
    dist.init_process_group("gloo")
    model, _ = load(name, dtype="float32")
    if dist.get_world_size() > 1:
        spread(model)
    tokens = np.random.default_rng(0).integers(10, 2000, (1, length))
    token_losses(model, tokens[:, :4096])
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, started = status("VmRSS"), time.perf_counter()
    loss = float(token_losses(model, tokens).mean())
    seconds, peak = time.perf_counter() - started, status("VmHWM") - before
    if dist.get_rank() == 0:
        print(json.dumps({"seconds": seconds, "peak_bytes": peak, "loss": loss}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
