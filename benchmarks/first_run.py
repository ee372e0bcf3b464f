"""The waiting times of a new user: start-up, and from ``git clone`` to the demo's report.

    make benchmark-first-run      # a quarter of an hour on two cores

Start-up is the median of five new processes, beside that of a bare Python. The way to the report is timed once, in an
empty folder, with the packages in pip's cache. Results in ``benchmarks/results/first-run.json``.
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
    """Measure all times and write the file."""
    starts = {name: median(seconds(sys.executable, *words) for _ in range(5)) for name, words in STARTS.items()}
    needed = [Requirement(line) for line in importlib.metadata.requires("longrope") or ()]
    core = sorted(
        requirement.name
        for requirement in needed
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    )
    with tempfile.TemporaryDirectory() as empty:
        clone = Path(empty) / "longrope"
        steps = {"git clone": seconds("git", "clone", "--quiet", str(ROOT), str(clone))}
        steps["make install"] = seconds("make", "install", cwd=clone)
        steps["longrope demo"] = seconds("make", "demo", cwd=clone)
        shutil.rmtree(clone / "dist", ignore_errors=True)
        subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", empty, str(clone)], check=True)
        (wheel,) = Path(empty).glob("*.whl")
        size = wheel.stat().st_size
    record = {"seconds to start": starts, "seconds from clone to report": steps, "wheel bytes": size}
    write_json(RESULTS, record | {"core dependencies": core, "provenance": provenance()})
    print(RESULTS.read_text())


def seconds(*command: str, cwd: Path | None = None) -> float:
    """Return the seconds of a command, with the start of its process."""
    started = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
