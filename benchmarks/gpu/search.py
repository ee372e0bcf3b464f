"""A gradient search on SmolLM2 at 128K tokens on one GPU, whole texts, from the command line to the factors.

    python benchmarks/gpu/search.py                                              # minutes on an H200; once
    python benchmarks/gpu/search.py tiny 2k --device cpu -o build/search.json    # does it run?

Ten steps on one document, judged on another one. Results in ``benchmarks/results/gpu-search.json``: seconds from the
start of the process to its end and those of the evaluations, losses on the other document, and the factors.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parent.parent / "results" / "gpu-search.json"
FEW = "--method gradient --population 10 --search-documents 1 --held-out-documents 1 --needles 0 --dtype bfloat16"


def main() -> None:
    """Run the search, and gather what it left."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("length", nargs="?", default="128k")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--run", type=Path, default=Path("build/gpu-search"), help="its run folder")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.output.exists():
        print(f"{given.output} is there: remove it to measure again")
        return
    words = [given.model, "--length", given.length, *FEW.split(), "--device", given.device, "-o", str(given.run)]
    script = "import sys; from longrope.cli.main import main; sys.argv[0] = 'longrope'; main()"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", script, "search", *words, "--overwrite"], check=True)
    seconds = time.perf_counter() - started
    journal = [json.loads(line) for line in (given.run / "search-0.jsonl").read_text().splitlines()]
    spent = [line["seconds"] for line in journal if "seconds" in line]
    run = json.loads((given.run / "run.json").read_text())
    write_json(given.output, {"seconds": seconds, "evaluation_seconds": spent, **run})
    print(f"{seconds:.0f} s, {sum(spent):.0f} of them in {len(spent)} evaluations")


if __name__ == "__main__":
    main()
