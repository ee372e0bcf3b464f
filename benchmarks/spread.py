"""What a second process does for one pass (`longrope.longcontext.context_parallel`), on two cores.

    make benchmark-spread        # a quarter of an hour on two cores

Losses by token of one text in float32 in the `WAYS` in turn, three times: the median of the seconds, and of the peak of
a process above the loaded model. Results in ``benchmarks/results/spread.json``.
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

from longrope.longcontext.context_parallel import context_parallel
from longrope.longcontext.token_losses import token_losses
from longrope.models.load import load
from longrope.provenance import provenance
from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parent / "results" / "spread.json"
CELLS = (("tiny", 32768), ("smollm2", 8192))
WAYS = {"one process": (1, 1), "two processes": (2, 1), "one process, two threads": (1, 2)}
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
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(TIMES):
            for way, (count, threads) in WAYS.items():
                found[way].append(launched(count, threads, name, length))
                print(name, length, way, found[way][-1], flush=True)
        of = {way: {key: median(row[key] for row in rows) for key in rows[0]} for way, rows in found.items()}
        seconds = {way: row["seconds"] for way, row in of.items()}
        assert max(row["loss"] for row in of.values()) - min(row["loss"] for row in of.values()) < 1e-4
        faster = {way: seconds["one process"] / taken for way, taken in seconds.items()}
        cells[f"{name} {length}"] = {**of, "times_as_fast_as_one_process": faster}
        write_json(RESULTS, {"cells": cells, "times": TIMES, "provenance": provenance()})


def launched(count: int, threads: int, name: str, length: int) -> dict[str, float]:
    """What the first of so many processes, each with so many threads, measured."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    command += [__file__, "--one-pass", name, str(length)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout)


def one_pass(name: str, length: int) -> None:
    """In one of the processes."""
    dist.init_process_group("gloo")
    model, _ = load(name, dtype="float32")
    if dist.get_world_size() > 1:
        context_parallel(model)
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
