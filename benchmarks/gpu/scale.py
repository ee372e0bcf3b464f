"""SmolLM2 from 64K to 2M tokens on one GPU, one forward pass a row: time, memory, FLOP/s, perplexity by position.

    python benchmarks/gpu/scale.py                                   # minutes to an hour; continues where it stopped
    python benchmarks/gpu/scale.py --factors run                     # a row more: searched factors
    python benchmarks/gpu/scale.py --model tiny --device cpu --lengths 4k,8k -o build/scale.json   # does it run?

The text is the longest test documents of this Python's library, one after the other. FLOP/s are those of
`longrope.evaluation.anatomy` over the seconds of the pass, beside the rate that one large product of matrices reaches;
the floor is what attention alone would take at that rate. Results in ``benchmarks/results/gpu-scale.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longrope.data.documents import load_documents
from longrope.data.split import split
from longrope.errors import LongRopeError
from longrope.evaluation.anatomy import Anatomy
from longrope.evaluation.loss import token_losses
from longrope.files import write_json
from longrope.lengths import parse_length
from longrope.models.load import load
from longrope.models.patch import patch
from longrope.reading.factors import load_factors
from longrope.report.provenance import provenance
from longrope.rope import Rope
from longrope.scaling import Extension
from longrope.schemes import scheme

RESULTS = Path(__file__).parent.parent / "results" / "gpu-scale.json"
LENGTHS = "64k,128k,256k,512k,1m,2m"
BINS, SIDE = 16, 8192


def main() -> None:
    """Every cell that is not there yet, the short ones first."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--lengths", default=LENGTHS)
    parser.add_argument("--factors", help="run folder or factors file: a row more")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    cells: dict[str, Any] = json.loads(given.output.read_text())["cells"] if given.output.exists() else {}
    model, tokenizer = load(given.model, dtype="bfloat16", device=given.device)
    rope, anatomy = Rope.of(model), Anatomy.of(model.config, "bfloat16")
    lengths = sorted(parse_length(length, "lengths") for length in given.lengths.split(","))
    tokens, rate = text(tokenizer, max(lengths)), product_rate(given.device)
    name = torch.cuda.get_device_name() if given.device.startswith("cuda") else given.device
    for length in lengths:
        rows: dict[str, Any] = {"none": None, **{one: scheme(one, rope, length) for one in ("yarn", "heuristic")}}
        if given.factors:
            found = load_factors(given.factors)
            rows["searched"] = found.long if isinstance(found, Extension) else found
        for row, factors in rows.items():
            key = f"{length} {row}"
            if key in cells:
                continue
            try:
                with patch(model, factors):
                    losses, seconds, peak = one_pass(model, tokens[:, :length], given.device)
            except LongRopeError as error:  # what does not fit is a result too
                cells[key] = {"error": str(error)}
            else:
                work = anatomy.forward(length)
                by_position = [float(np.exp(part.mean())) for part in np.array_split(losses, BINS)]
                cells[key] = {
                    "seconds": seconds,
                    "peak_bytes": peak,
                    "flops_per_second": work.flops / seconds,
                    "attention_floor_seconds": work.attention / rate,
                    "perplexity": float(np.exp(losses.mean())),
                    "perplexity_by_position": by_position,
                }
            record = {
                "cells": cells,
                "device": name,
                "product_flops_per_second": rate,
                "provenance": provenance(given.device),
            }
            write_json(given.output, record)
            print(key, cells[key], flush=True)


def text(tokenizer: Any, length: int) -> np.ndarray:
    """``(1, length)`` token ids, the documents again from the first if they end."""
    documents = sorted(split(load_documents("stdlib"))["test"], key=lambda document: -len(document.text))
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < length:
        for document in documents:
            parts.append(np.array(tokenizer(document.text)["input_ids"]))
            if sum(map(len, parts)) >= length:
                break
    return np.concatenate(parts)[None, :length]


def one_pass(model: Any, tokens: np.ndarray, device: str) -> tuple[np.ndarray, float, int | None]:
    """Losses by token, seconds, and on CUDA the peak bytes above what was held before."""
    cuda = device.startswith("cuda")
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    losses = token_losses(model, tokens)[0].astype(np.float64)
    seconds = time.perf_counter() - started
    return losses, seconds, torch.cuda.max_memory_allocated() - before if cuda else None


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
