"""Which lines of longrope the tests run, those in processes that they start included.

    make coverage                                         # the whole default suite
    python scripts/measure_coverage.py tests/test_rope.py # a part of it; leaves the results alone

Ends with an error if tests fail or, for the whole suite, if fewer lines run than ``fail_under`` in ``pyproject.toml``
asks for. What a killed process ran is not counted. Results in ``benchmarks/results/coverage.json``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from longrope.provenance import provenance
from longrope.storage.atomic import write_json

ROOT = Path(__file__).parent.parent
RESULTS, BUILD = ROOT / "benchmarks" / "results" / "coverage.json", ROOT / "build" / "coverage"
COVERAGE = [sys.executable, "-m", "coverage"]
WHOLE = "-n auto --maxprocesses 4 --dist loadfile".split()  # as make test does


def main() -> None:
    """Run the tests under coverage.py, put their processes together, write and check."""
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    wanted, threads = sys.argv[1:] or WHOLE, {**os.environ, "OMP_NUM_THREADS": "1"}
    tests = subprocess.run([*COVERAGE, "run", "-m", "pytest", *wanted], cwd=ROOT, env=threads)
    subprocess.run([*COVERAGE, "combine", "--quiet"], cwd=ROOT, check=True)
    subprocess.run([*COVERAGE, "json", "--quiet", "--fail-under=0", "-o", BUILD / "report.json"], cwd=ROOT, check=True)
    report = json.loads((BUILD / "report.json").read_text("utf-8"))
    print(json.dumps(record := summary(report), indent=1))
    if not sys.argv[1:] and not tests.returncode:
        write_json(RESULTS, {**record, "provenance": {**provenance(), "coverage": version("coverage")}})
        sys.exit(subprocess.run([*COVERAGE, "report", "--format=total"], cwd=ROOT).returncode)
    sys.exit(tests.returncode)


def summary(report: dict) -> dict[str, object]:
    """Lines that run, in all and of each file that has some that do not."""
    files = {name.removeprefix("src/longrope/"): one for name, one in sorted(report["files"].items())}
    missing = {name: one["missing_lines"] for name, one in files.items() if one["missing_lines"]}
    totals = report["totals"]
    return {
        "lines": totals["num_statements"],
        "run": totals["covered_lines"],
        "percent": round(100 * totals["covered_lines"] / totals["num_statements"], 2),
        "files": len(files),
        "lines that did not run": {name: spans(lines) for name, lines in missing.items()},
    }


def spans(lines: list[int]) -> str:
    """Line numbers as "3-5, 9"."""
    found: list[list[int]] = []
    for line in lines:
        if found and line == found[-1][1] + 1:
            found[-1][1] = line
        else:
            found.append([line, line])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in found)


if __name__ == "__main__":
    main()
