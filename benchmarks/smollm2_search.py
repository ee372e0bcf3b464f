"""SmolLM2-135M from 8,192 to 16,384 tokens by the default search, on a CPU with bfloat16 instructions.

    make benchmark-smollm2-search    # about two hours on two cores; continues from the journal in the results

The journal, the factors and the record of the run are in ``benchmarks/results/smollm2-16k-search``.
"""

from __future__ import annotations

from pathlib import Path

import longrope as lr

RUN = Path(__file__).parent / "results" / "smollm2-16k-search"


def main() -> None:
    """Search, from where the journal ends."""
    options = lr.SearchOptions(dtype="bfloat16", existing="resume")
    result = lr.search("smollm2", length=16384, data="stdlib", output=RUN, options=options)
    for name, loss in result.held_out.items():
        print(f"{name:12} {loss:.4f}")


if __name__ == "__main__":
    main()
