"""The loss of a chunk of logits on a CPU: all at once, and by blocks that stay in its cache.

    make benchmark-losses          # a minute

Logits as of SmolLM2's head in bfloat16, `LOGITS_AT_ONCE` of them, as `head_losses` has them; the two ways in turn,
61 times; medians. Results in ``benchmarks/results/losses.json``.
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
WAYS = {"at once": token_losses.LOGITS_AT_ONCE, "by blocks": token_losses.LOGITS_IN_CACHE}


@torch.inference_mode()
def main() -> None:
    """Measure and write."""
    torch.manual_seed(0)
    rows = token_losses.LOGITS_AT_ONCE // VOCABULARY
    logits = torch.randn(rows, VOCABULARY).bfloat16()
    targets = torch.randint(VOCABULARY, (rows,))
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    found = {}
    for _ in range(61):
        for way, block in WAYS.items():
            token_losses.LOGITS_IN_CACHE = block
            began = time.perf_counter()
            found[way] = token_losses.losses_of(logits, targets)
            seconds[way].append(time.perf_counter() - began)
    middle = {way: median(times) for way, times in seconds.items()}
    same = torch.equal(found["at once"], found["by blocks"])
    record = {"seconds": middle, "times faster": middle["at once"] / middle["by blocks"], "same bits": same}
    write_json(RESULTS, record | {"logits": [rows, VOCABULARY], "seed": 0, "provenance": provenance()})
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
