"""What a newcomer waits for: start-up, and the way from ``git clone`` to the demo's report.

    make benchmark-first-run      # a quarter of an hour on two cores

Start-up is the median of five fresh processes, beside that of a bare Python. The way is walked once, in an empty
folder, with what the machine's pip has in its cache. Results in ``benchmarks/results/first-run.json``.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from packaging.requirements import Requirement

from longrope.provenance import provenance
from longrope.storage.atomic import write_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "first-run.json"
STARTS = {
    "python alone": ("-c", "pass"),
    "import longrope": ("-c", "import longrope"),
    "longrope --help": ("-m", "longrope", "--help"),
    "longrope search --help": ("-m", "longrope", "search", "--help"),
    "longrope scale tiny (loads transformers)": ("-m", "longrope", "scale", "tiny", "--length", "2k"),
}


def main() -> None:
    """Measure and write."""
    starts = {name: median(seconds(sys.executable, *words) for _ in range(5)) for name, words in STARTS.items()}
    needed = [Requirement(line) for line in importlib.metadata.requires("longrope") or ()]
    core = sorted(one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""}))
    with tempfile.TemporaryDirectory() as empty:
        clone = Path(empty) / "longrope"
        way = {"git clone": seconds("git", "clone", "--quiet", str(ROOT), str(clone))}
        way["make install"] = seconds("make", "install", cwd=clone)
        way["longrope demo"] = seconds("make", "demo", cwd=clone)
        shutil.rmtree(clone / "dist", ignore_errors=True)
        subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", empty, str(clone)], check=True)
        (wheel,) = Path(empty).glob("*.whl")
        size = wheel.stat().st_size
    found = {"seconds to start": starts, "seconds from clone to report": way, "wheel bytes": size}
    write_json(RESULTS, found | {"core dependencies": core, "provenance": provenance()})
    print(RESULTS.read_text())


def seconds(*command: str, cwd: Path | None = None) -> float:
    """Of a command, as a whole process."""
    began = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
