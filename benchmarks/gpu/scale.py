"""SmolLM2 from 64K to 2M tokens on one GPU, one forward pass a row: time, memory, FLOP/s, perplexity by position.

    python benchmarks/gpu/scale.py                       # a quarter of an hour on an H200; continues where it stopped
    python benchmarks/gpu/scale.py 64k 2m:yarn           # these alone, in this order
    python benchmarks/gpu/scale.py 128k:searched --factors run
    python benchmarks/gpu/scale.py 4k 8k --model tiny --device cpu -o build/scale.json   # does it run?

The text is the longest test documents of this Python's library, one after the other. FLOP/s are those of
`longrope.cost.model_shape` over the seconds of the pass, beside the rate that one large product of matrices reaches;
the floor is what attention alone would take at that rate. What was foreseen is what ``longrope plan`` would tell: bytes
from the model's shape, seconds from a calibration. What does not fit is a row too, with the error. Results in
``benchmarks/results/gpu-scale.json``; its calibration, rate and provenance are those of the last call.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longrope.cost import peak_memory
from longrope.cost.device_speed import measure_device_speed
from longrope.cost.model_shape import ModelShape
from longrope.data.documents import load_documents
from longrope.data.split import split_documents
from longrope.errors import LongRopeError
from longrope.formats.load_factors import load_factors
from longrope.longcontext.token_losses import token_losses
from longrope.models.load import load
from longrope.models.patch import patch
from longrope.provenance import provenance
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme
from longrope.storage.atomic import write_json
from longrope.units import parse_length

RESULTS = Path(__file__).parent.parent / "results" / "gpu-scale.json"
CELLS = ("64k", "128k", "256k", "512k", "1m", "2m")
ROWS = ("none", "yarn", "heuristic")
BINS, SIDE = 16, 8192
REHEARSED = 2**18  # tokens; up to there, what the first pass at a length compiles would count


def main() -> None:
    """Every cell that is not there yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cells", nargs="*", help="LENGTH or LENGTH:ROW,ROW", default=CELLS)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--factors", help="run folder or factors file: what the row 'searched' means")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    cells: dict[str, Any] = json.loads(given.output.read_text())["cells"] if given.output.exists() else {}
    model, tokenizer = load(given.model, dtype="bfloat16", device=given.device)
    rope, anatomy = Rope.of(model), ModelShape.of(model.config, "bfloat16", given.device)
    rates = measure_device_speed(model.config, device=given.device, dtype="bfloat16")
    rows = (*ROWS, "searched") if given.factors else ROWS
    wanted = [wish(cell, rows) for cell in given.cells]
    tokens, rate = text(tokenizer, max(length for length, _ in wanted)), product_rate(given.device)
    for length, row in [(length, row) for length, rows in wanted for row in rows if f"{length} {row}" not in cells]:
        work, weights = anatomy.forward(length), anatomy.parameters * anatomy.bytes
        try:
            with patch(model, factors_of(row, rope, length, given.factors)):
                if length <= REHEARSED:
                    one_pass(model, tokens[:, :length], given.device)
                losses, found = one_pass(model, tokens[:, :length], given.device)
        except LongRopeError as error:
            cells[f"{length} {row}"] = {"error": str(error)}
        else:
            cells[f"{length} {row}"] = {
                **found,
                "foreseen_seconds": rates.seconds(work),
                "foreseen_bytes": peak_memory.of_pass(anatomy, length, gradient=False) - weights,
                "flops_per_second": work.total / found["seconds"],
                "attention_floor_seconds": work.attention / rate,
                "perplexity": float(np.exp(losses.mean())),
                "perplexity_by_position": [float(np.exp(part.mean())) for part in np.array_split(losses, BINS)],
            }
        record = {
            "cells": cells,
            "product_flops_per_second": rate,
            "calibration": asdict(rates),
            "provenance": provenance(given.device),
        }
        write_json(given.output, record)
        print(length, row, cells[f"{length} {row}"], flush=True)


def wish(cell: str, rows: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    """A length and its rows, those given if it names none."""
    length, _, named = cell.partition(":")
    return parse_length(length, "cells"), tuple(named.split(",")) if named else rows


def factors_of(row: str, rope: Rope, length: int, searched: str | None) -> Scaling | None:
    """The factors that a row is named after."""
    if row == "none":
        return None
    if row != "searched":
        return scheme(row, rope, length)
    if searched is None:
        raise SystemExit("the row 'searched' needs --factors")
    found = load_factors(searched)
    return found.long if isinstance(found, Extension) else found


def text(tokenizer: Any, length: int) -> np.ndarray:
    """``(1, length)`` token ids, the documents again from the first if they end."""
    documents = sorted(split_documents(load_documents("stdlib"))["test"], key=lambda document: -len(document.text))
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < length:
        for document in documents:
            parts.append(np.array(tokenizer(document.text)["input_ids"]))
            if sum(map(len, parts)) >= length:
                break
    return np.concatenate(parts)[None, :length]


def one_pass(model: Any, tokens: np.ndarray, device: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Losses by token; seconds, those of head and loss over the backbone's, on CUDA the peak bytes above the model."""
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
    losses = token_losses(model, tokens)[0].astype(np.float64)
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
    """FLOP/s of one large product of bfloat16 matrices, the best of ten."""
    side = SIDE if device.startswith("cuda") else 1024
    one = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        _ = one @ one
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)


if __name__ == "__main__":
    main()
