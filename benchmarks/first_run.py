"""The waiting times of a new user: start-up, and from ``git clone`` to the demo's report.

    make benchmark-first-run                   # a quarter of an hour on two cores
    python benchmarks/first_run.py --starts    # start-up and the wheel alone

Start-up is the median of nine new processes, beside that of a bare Python: seconds, and seconds of processor time (user
and system), which other work on the machine changes less. The way to the report is timed once, in an empty folder, with
the packages in pip's cache. Results in ``benchmarks/results/first-run.json``; each part says when and where.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import resource
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
REPEATS = 9
STARTS = {
    "python alone": ("-c", "pass"),
    "import longrope": ("-c", "import longrope"),
    "longrope --help": ("-m", "longrope", "--help"),
    "longrope search --help": ("-m", "longrope", "search", "--help"),
    "longrope scale tiny (loads transformers)": ("-m", "longrope", "scale", "tiny", "--length", "2k"),
}


def main() -> None:
    """Measure the times and write the file."""
    parser = argparse.ArgumentParser(description="The waiting times of a new user.")
    parser.add_argument("--starts", action="store_true", help="measure start-up and the wheel alone")
    options = parser.parse_args()
    record = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    record["start-up"] = starts() | {"provenance": provenance()}
    if not options.starts:
        record["from clone to report"] = way_to_the_report() | {"provenance": provenance()}
    write_json(RESULTS, record)
    print(RESULTS.read_text())


def starts() -> dict[str, object]:
    """Time each command of `STARTS`, the commands in turns, and build the wheel."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in STARTS}
    for _ in range(REPEATS):
        for name, words in STARTS.items():
            before = processor_seconds()
            taken[name].append((seconds(sys.executable, *words), processor_seconds() - before))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, str(ROOT)], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        size = wheel.stat().st_size
    return {
        "seconds": {name: median(wall for wall, _ in times) for name, times in taken.items()},
        "processor seconds": {name: median(used for _, used in times) for name, times in taken.items()},
        "wheel bytes": size,
        "core dependencies": core_dependencies(),
    }


def core_dependencies() -> list[str]:
    """Return the names of the packages that longrope always needs."""
    needed = [Requirement(line) for line in importlib.metadata.requires("longrope") or ()]
    return sorted(
        requirement.name
        for requirement in needed
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    )


def way_to_the_report() -> dict[str, object]:
    """Time the steps from ``git clone`` to the demo's report."""
    with tempfile.TemporaryDirectory() as empty:
        clone = Path(empty) / "longrope"
        steps = {"git clone": seconds("git", "clone", "--quiet", str(ROOT), str(clone))}
        steps["make install"] = seconds("make", "install", cwd=clone)
        steps["longrope demo"] = seconds("make", "demo", cwd=clone)
    return {"seconds": steps}


def processor_seconds() -> float:
    """Return the user and system seconds of all processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def seconds(*command: str, cwd: Path | None = None) -> float:
    """Return the seconds of a command, with the start of its process."""
    started = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
