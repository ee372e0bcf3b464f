"""Measure SmolLM2 from 64K to 2M tokens on one GPU: time, memory, FLOP/s and perplexity by position of one pass.

    python benchmarks/gpu/scale.py                       # a quarter of an hour on an H200; continues where it stopped
    python benchmarks/gpu/scale.py 64k 2m:yarn           # these alone, in this order
    python benchmarks/gpu/scale.py 128k:searched --factors run
    python benchmarks/gpu/scale.py 4k 8k --model tiny --device cpu -o build/scale.json   # a trial run

The text is the longest test documents of this Python's library, one after the other. FLOP/s are those of
`longrope.cost.model_shape` over the seconds of the pass, beside the rate of one large product of matrices. The floor is
the time of attention alone at that rate. Foreseen are the bytes and seconds that ``longrope plan`` shows, from the
model's shape and a calibration. A pass that does not fit is a row with the error. Results in
``benchmarks/results/gpu-scale.json``, with the calibration, rate and provenance of the last call.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import longrope as lr
from longrope.cost import peak_memory
from longrope.cost.device_speed import measure_device_speed
from longrope.cost.model_shape import ModelShape
from longrope.provenance import provenance
from longrope.storage.atomic import write_json
from longrope.units import parse_length

sys.path.append(str(Path(__file__).parent.parent))
from measuring import long_text

RESULTS = Path(__file__).parent.parent / "results" / "gpu-scale.json"
LENGTHS = ("64k", "128k", "256k", "512k", "1m", "2m")
ROWS = ("none", "yarn", "heuristic")
BINS, SIDE = 16, 8192
REHEARSED = 2**18  # tokens; up to here compilation in the first pass at a length would distort its time


def main() -> None:
    """Measure every pass that the results file lacks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cells", nargs="*", help="LENGTH or LENGTH:ROW,ROW", default=LENGTHS)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--factors", help="factors file or run folder of the row 'searched'")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    passes: dict[str, Any] = json.loads(arguments.output.read_text())["cells"] if arguments.output.exists() else {}
    model, tokenizer = lr.load(arguments.model, dtype="bfloat16", device=arguments.device)
    rope, shape = lr.Rope.of(model), ModelShape.of(model.config, "bfloat16", arguments.device)
    speed = measure_device_speed(model.config, device=arguments.device, dtype="bfloat16")
    rows = (*ROWS, "searched") if arguments.factors else ROWS
    requests = [parse_request(request, rows) for request in arguments.cells]
    tokens = long_text(tokenizer, max(length for length, _ in requests))
    rate = product_rate(arguments.device)
    for length, row in [(length, row) for length, rows in requests for row in rows if f"{length} {row}" not in passes]:
        flops, weights = shape.forward(length), shape.parameters * shape.bytes
        try:
            with lr.patch(model, factors_of(row, rope, length, arguments.factors)):
                if length <= REHEARSED:
                    one_pass(model, tokens[:, :length], arguments.device)
                losses, measured = one_pass(model, tokens[:, :length], arguments.device)
        except lr.LongRopeError as error:
            passes[f"{length} {row}"] = {"error": str(error)}
        else:
            passes[f"{length} {row}"] = {
                **measured,
                "foreseen_seconds": speed.seconds(flops),
                "foreseen_bytes": peak_memory.of_pass(shape, length, gradient=False) - weights,
                "flops_per_second": flops.total / measured["seconds"],
                "attention_floor_seconds": flops.attention / rate,
                "perplexity": float(np.exp(losses.mean())),
                "perplexity_by_position": [float(np.exp(chunk.mean())) for chunk in np.array_split(losses, BINS)],
            }
        record = {
            "cells": passes,
            "product_flops_per_second": rate,
            "calibration": asdict(speed),
            "provenance": provenance(arguments.device),
        }
        write_json(arguments.output, record)
        print(length, row, passes[f"{length} {row}"], flush=True)


def parse_request(request: str, rows: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    """Return the length and rows of a request such as ``2m:yarn``; all rows if it names none."""
    length, _, named = request.partition(":")
    return parse_length(length, "cells"), tuple(named.split(",")) if named else rows


def factors_of(row: str, rope: lr.Rope, length: int, searched: str | None) -> lr.Scaling | None:
    """Return the factors of a row."""
    if row == "searched":
        if searched is None:
            raise SystemExit("the row 'searched' needs --factors")
        factors = lr.load_factors(searched)
        return factors.long if isinstance(factors, lr.Extension) else factors
    return None if row == "none" else lr.scheme(row, rope, length)


def one_pass(model: Any, tokens: np.ndarray, device: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Return losses by token, and the seconds and peak bytes of the pass with the share of head and loss."""
    cuda, marks = device.startswith("cuda"), []

    def now() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    hooks = [
        model.base_model.register_forward_pre_hook(lambda *_: marks.append(now())),
        model.base_model.register_forward_hook(lambda *_: marks.append(now())),
    ]
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    started = now()
    losses = lr.token_losses(model, tokens)[0].astype(np.float64)
    seconds = now() - started
    for hook in hooks:
        hook.remove()
    backbone = marks[1] - marks[0]
    return losses, {
        "seconds": seconds,
        "head_and_loss_over_backbone": (seconds - backbone) / backbone,
        "peak_bytes": torch.cuda.max_memory_allocated() - before if cuda else None,
    }


def product_rate(device: str) -> float:
    """Return the FLOP/s of one large product of bfloat16 matrices, the best of ten."""
    side = SIDE if device.startswith("cuda") else 1024
    matrix = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        _ = matrix @ matrix
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)


if __name__ == "__main__":
    main()
