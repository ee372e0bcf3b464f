"""SmolLM2-135M at 16K side by side: original, YaRN, heuristic, and the factors of ``benchmarks/smollm2.py``.

    make benchmark-smollm2-eval    # an hour on two cores; continues where it stopped

Perplexity on two test documents, and one needle at three depths. Results and report in
``benchmarks/results/smollm2-eval``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from longrope.models.load import load_config
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import attention_factor
from longrope.storage.atomic import write_text

RESULTS = Path(__file__).parent / "results"
BUILD, LENGTH = Path("build/smollm2"), 16384
COMMAND = (
    "eval smollm2 --lengths 2k,8k,16k --schemes yarn,heuristic --documents 2 --dtype bfloat16 --trials 3 "
    "--depths 0.1,0.5,0.9 --retrieval niah_single_2 --retrieval-lengths 8k,16k --resume"
)


def main() -> None:
    """Write the factors file, compare, report."""
    rope = Rope.of(load_config("smollm2"))
    factors = json.loads((RESULTS / "smollm2-16k.json").read_text())["factors"]
    found = Scaling(factors, attention_factor=attention_factor("su", rope, LENGTH), scheme="searched", length=LENGTH)
    write_text(BUILD / "searched.json", Extension.of(rope, found).to_json())
    for words in (
        [*COMMAND.split(), "--factors", str(BUILD / "searched.json"), "-o", str(BUILD / "eval")],
        ["report", str(BUILD / "eval"), "-o", str(BUILD / "eval" / "report.html"), "--overwrite"],
    ):
        subprocess.run([sys.executable, "-m", "longrope", *words], check=True)
    folder = RESULTS / "smollm2-eval"
    folder.mkdir(exist_ok=True)
    for name in ("results.json", "report.html"):
        shutil.copyfile(BUILD / "eval" / name, folder / name)


if __name__ == "__main__":
    main()
