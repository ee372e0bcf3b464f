"""Measure the loss of a chunk of logits on a CPU: all at once, and in blocks that stay in the CPU's cache.

    make benchmark-losses          # a minute

The logits have the shape and type of SmolLM2's, `LOGITS_AT_ONCE` of them, as in `head_losses`. The two variants run in
turn, 61 times, and the medians are reported. Results in ``benchmarks/results/losses.json``.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import torch

from longrope.longcontext import token_losses
from longrope.provenance import provenance
from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parent / "results" / "losses.json"
VOCABULARY = 49152
VARIANTS = {"at once": token_losses.LOGITS_AT_ONCE, "by blocks": token_losses.LOGITS_IN_CACHE}


@torch.inference_mode()
def main() -> None:
    """Measure both variants and write the results."""
    torch.manual_seed(0)
    rows = token_losses.LOGITS_AT_ONCE // VOCABULARY
    logits = torch.randn(rows, VOCABULARY).bfloat16()
    targets = torch.randint(VOCABULARY, (rows,))
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    losses = {}
    for _ in range(61):
        for name, block in VARIANTS.items():
            token_losses.LOGITS_IN_CACHE = block
            started = time.perf_counter()
            losses[name] = token_losses.losses_of(logits, targets)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: median(times) for name, times in seconds.items()}
    same = torch.equal(losses["at once"], losses["by blocks"])
    record = {"seconds": medians, "times faster": medians["at once"] / medians["by blocks"], "same bits": same}
    write_json(RESULTS, record | {"logits": [rows, VOCABULARY], "seed": 0, "provenance": provenance()})
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
