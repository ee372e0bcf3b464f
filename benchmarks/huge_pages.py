"""Measure what huge pages save on a CPU: training steps, and forward passes as `eval` makes them.

    make benchmark-huge-pages      # a quarter of an hour, on Linux; continues where it stopped

PyTorch gives the memory of large tensors back to Linux, and gets it again page by page. With `THP_MEM_ALLOC_ENABLE=1`,
which the commands of longrope set, a page has 2 MiB instead of 4 KiB. The model has SmolLM2's sizes and random weights.
Each measurement is a new process, which reports the fastest of three steps after a rehearsal. The two variants take
turns. Results in ``benchmarks/results/huge-pages.json``.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import measure_in_processes, medians, reset_peak, status
from transformers import LlamaConfig, LlamaForCausalLM

from longrope.longcontext.token_losses import token_losses
from longrope.longcontext.training_loss import use_chunked_loss

RESULTS = Path(__file__).parent / "results" / "huge-pages.json"
VARIANTS = ("small", "huge")
SIZES: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
TURNS = {"training 2048 bfloat16": 5, "passes 8192 bfloat16": 5}


def main() -> None:
    """Measure what is missing, and write the results."""
    measure_in_processes(RESULTS, TURNS, VARIANTS, measure, summarize)


def measure(kind: str, length: str, dtype: str, pages: str) -> dict[str, float]:
    """Return the seconds of the fastest of three steps, its page faults, and the peak of memory in bytes."""
    os.environ["THP_MEM_ALLOC_ENABLE"] = str(int(pages == "huge"))  # PyTorch reads it at its first large tensor
    torch.manual_seed(0)
    tokens = torch.randint(SIZES["vocab_size"], (1, int(length)))
    step = (_training_step if kind == "training" else _passes)(tokens, getattr(torch, dtype))
    step()
    reset_peak()
    rows = []
    for _ in range(3):
        faults, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        step()
        seconds = time.perf_counter() - started
        rows.append({"seconds": seconds, "faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults})
    return min(rows, key=lambda row: row["seconds"]) | {"peak_bytes": status("VmHWM")}


def _training_step(tokens: torch.Tensor, dtype: torch.dtype) -> Callable[[], object]:
    model = use_chunked_loss(LlamaForCausalLM(LlamaConfig(**SIZES)).train())
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _passes(tokens: torch.Tensor, dtype: torch.dtype) -> Callable[[], object]:
    model: Any = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    model.to(dtype)
    return lambda: token_losses(model, tokens.numpy())


def summarize(cells: dict[str, Any]) -> dict[str, Any]:
    """Return the medians, and the ratio of their seconds."""
    summary: dict[str, Any] = {}
    for case in TURNS:
        small, huge = (medians(cells, f"{case} {pages}") for pages in VARIANTS)
        if small and huge:
            faster = small["seconds"] / huge["seconds"]
            summary[case] = {"small": small, "huge": huge, "times faster": faster}
    return summary


if __name__ == "__main__":
    main()
