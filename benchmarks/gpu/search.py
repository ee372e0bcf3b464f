"""Search SmolLM2's factors for 128K tokens by the gradient on one GPU, whole texts.

    python benchmarks/gpu/search.py                                              # minutes on an H200; once
    python benchmarks/gpu/search.py tiny 2k --device cpu -o build/search.json    # a trial run

Ten steps on one document, judged on another one. Results in ``benchmarks/results/gpu-search.json``: seconds with the
loading of the model and those of the evaluations, losses on the other document, and the factors.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import longrope as lr
from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parent.parent / "results" / "gpu-search.json"


def main() -> None:
    """Run the search, and write its times and what it found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("length", nargs="?", default="128k")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--run", type=Path, default=Path("build/gpu-search"), help="run folder")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.output.exists():
        print(f"{arguments.output} exists: remove it to measure again")
        return
    options = lr.SearchOptions(
        population=10,
        search_documents=1,
        held_out_documents=1,
        needles=0,
        dtype="bfloat16",
        device=arguments.device,
        existing="overwrite",
    )
    started = time.perf_counter()
    result = lr.search(
        arguments.model, length=arguments.length, method="gradient", output=arguments.run, options=options
    )
    seconds, spent = time.perf_counter() - started, result.outcomes[0].seconds
    run = json.loads((arguments.run / "run.json").read_text())
    write_json(arguments.output, {"seconds": seconds, "evaluation_seconds": spent, **run})
    print(f"{seconds:.0f} s, {spent:.0f} of them in evaluations")


if __name__ == "__main__":
    main()
