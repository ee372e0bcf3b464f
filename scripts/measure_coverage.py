"""Measure which lines of longrope the tests run, including the processes that tests start.

    make coverage                                         # the whole default suite
    python scripts/measure_coverage.py tests/test_rope.py # some tests; does not write the results

The exit code is not 0 if tests fail or, for the whole suite, if fewer lines run than ``fail_under`` in
``pyproject.toml`` requires. Lines of killed processes are not counted. Results:
``benchmarks/results/coverage.json``.
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
WHOLE_SUITE = "-n auto --maxprocesses 4 --dist loadfile".split()  # like make test


def main() -> None:
    """Run the tests under coverage.py, combine their processes, write the results and check the limit."""
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    arguments = sys.argv[1:] or WHOLE_SUITE
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    tests = subprocess.run([*COVERAGE, "run", "-m", "pytest", *arguments], cwd=ROOT, env=environment)
    subprocess.run([*COVERAGE, "combine", "--quiet"], cwd=ROOT, check=True)
    subprocess.run([*COVERAGE, "json", "--quiet", "--fail-under=0", "-o", BUILD / "report.json"], cwd=ROOT, check=True)
    report = json.loads((BUILD / "report.json").read_text("utf-8"))
    print(json.dumps(record := summary(report), indent=1))
    if not sys.argv[1:] and not tests.returncode:
        write_json(RESULTS, {**record, "provenance": {**provenance(), "coverage": version("coverage")}})
        sys.exit(subprocess.run([*COVERAGE, "report", "--format=total"], cwd=ROOT).returncode)
    sys.exit(tests.returncode)


def summary(report: dict) -> dict[str, object]:
    """Return the number of lines that run, and for each file the lines that do not."""
    files = {name.removeprefix("src/longrope/"): file for name, file in sorted(report["files"].items())}
    missing = {name: file["missing_lines"] for name, file in files.items() if file["missing_lines"]}
    totals = report["totals"]
    return {
        "lines": totals["num_statements"],
        "run": totals["covered_lines"],
        "percent": round(100 * totals["covered_lines"] / totals["num_statements"], 2),
        "files": len(files),
        "lines that did not run": {name: spans(lines) for name, lines in missing.items()},
    }


def spans(lines: list[int]) -> str:
    """Format line numbers as "3-5, 9"."""
    ranges: list[list[int]] = []
    for line in lines:
        if ranges and line == ranges[-1][1] + 1:
            ranges[-1][1] = line
        else:
            ranges.append([line, line])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ranges)


if __name__ == "__main__":
    main()
