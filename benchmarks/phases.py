"""Compare exact phases with transformers' float32 ones: error, time, and the effect on a model's loss.

    make benchmark-phases      # minutes on two cores

The reference is float64. Times are medians of nine for the cos and sin of a whole sequence, ours and transformers' in
turn. For the loss, windows of documents end at the last of 1,024 to 2M positions. Relative positions, and so the exact
losses, are the same everywhere, and only float32's error changes. Results in ``benchmarks/results/phases.json``.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measuring import measure_in_turn
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import longrope as lr
from longrope.data.split import draw_tokens, split_documents
from longrope.provenance import provenance
from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parent / "results" / "phases.json"
ROPE = lr.Rope(dim=128, base=500000.0, original_length=8192)
LENGTHS = (2**14, 2**17, 2**19, 2**21)
TURNS, DOCUMENTS, WINDOW = 9, 8, 1024


def main() -> None:
    """Measure all and write the results."""
    record = {"cos and sin": {f"{length}": angles(length) for length in LENGTHS}, "loss of tiny": losses()}
    write_json(RESULTS, {**record, "provenance": provenance()})
    print(RESULTS.read_text())


def angles(length: int) -> dict[str, float]:
    """Return the largest errors and median seconds of both, and their ratio, in float32 with a plain RoPE."""
    config = LlamaConfig(head_dim=ROPE.dim, rope_parameters={"rope_type": "default", "rope_theta": ROPE.base})
    transformers_rope = LlamaRotaryEmbedding(config)
    exact_rope = lr.LongRoPE.static(ROPE, [lr.scheme("heuristic", ROPE, ROPE.original_length)])
    x, positions = torch.zeros(1, length, 1), torch.arange(length)[None]
    modules = {"ours": exact_rope, "transformers": transformers_rope}
    passes = {name: partial(module, x, positions) for name, module in modules.items()}
    seconds, tables = measure_in_turn(passes, TURNS)
    errors = {f"{name} error": max(map(_error, tables[name], (np.cos, np.sin))) for name in modules}
    ratio = median(a / b for a, b in zip(seconds["ours"], seconds["transformers"], strict=True))
    medians = {f"{name} seconds": median(times) for name, times in seconds.items()}
    return {**errors, **medians, "our time over theirs": ratio}


def _error(table: Tensor, function: Any) -> float:
    """Return the largest error at the last positions, against float64."""
    length = table.shape[1]
    positions = np.arange(max(length - 4096, 0), length)
    exact = function(positions[:, None] * ROPE.inv_freq)
    return float(np.abs(table[0, -len(positions) :, : ROPE.dim // 2].numpy() - exact).max())


def losses() -> dict[str, Any]:
    """Return mean losses at the ends of several lengths, with exact phases and with transformers' own."""
    model, tokenizer = lr.load("tiny", dtype="float32")
    rope = lr.Rope.of(model)
    long = lr.scheme("heuristic", rope, LENGTHS[-1])
    documents = split_documents(lr.load_documents("stdlib:unseen"))["test"]
    tokens = draw_tokens(documents, tokenizer, length=WINDOW, count=DOCUMENTS).tokens
    with tempfile.TemporaryDirectory() as folder:
        lr.export(model, tokenizer, long, Path(folder) / "checkpoint")
        exported = AutoModelForCausalLM.from_pretrained(Path(folder) / "checkpoint", dtype=torch.float32).eval()
    by_length = {}
    for length in (WINDOW, *LENGTHS):
        positions = np.tile(np.arange(length - WINDOW, length), (len(tokens), 1))
        with lr.patch(model, long):
            exact = lr.token_losses(model, tokens, positions=positions)
        rounded = lr.token_losses(exported, tokens, positions=positions)
        by_length[f"{length}"] = {
            "exact": float(exact.mean(dtype=float)),
            "transformers": float(rounded.mean(dtype=float)),
            "mean absolute difference by token": float(np.abs(rounded - exact).mean(dtype=float)),
        }
    return by_length


if __name__ == "__main__":
    main()
