"""Measure the loss of a chunk of logits on a CPU: all at once, and in blocks that stay in the CPU's cache.

    make benchmark-losses          # a minute

The logits have the shape and type of SmolLM2's, `LOGITS_AT_ONCE` of them, as in `head_losses`. The two variants run in
turn, 61 times, and the medians are reported. Results in ``benchmarks/results/losses.json``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import median

import torch
from measuring import measure_in_turn

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

    def losses(block: int) -> torch.Tensor:
        token_losses.LOGITS_IN_CACHE = block
        return token_losses.losses_of(logits, targets)

    seconds, results = measure_in_turn({name: partial(losses, block) for name, block in VARIANTS.items()}, 61)
    medians = {name: median(times) for name, times in seconds.items()}
    same = torch.equal(results["at once"], results["by blocks"])
    record = {"seconds": medians, "times faster": medians["at once"] / medians["by blocks"], "same bits": same}
    write_json(RESULTS, record | {"logits": [rows, VOCABULARY], "seed": 0, "provenance": provenance()})
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
