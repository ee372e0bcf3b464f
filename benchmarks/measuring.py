"""Measurements that several benchmarks share."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from longrope.data.documents import load_documents
from longrope.data.split import split_documents
from longrope.provenance import provenance
from longrope.storage.atomic import write_json


def status(field: str) -> int:
    """Return the bytes of a field of this process's status (Linux), such as ``VmHWM``, the peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def reset_peak() -> int:
    """Forget the peak of this process's memory so far, and return the bytes in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def measure_pass(one_pass: Callable[[], float]) -> dict[str, float]:
    """Return a pass's loss and seconds, the bytes in use before it, and the peak above these."""
    before, started = reset_peak(), time.perf_counter()
    loss = one_pass()
    seconds = time.perf_counter() - started
    return {"peak_bytes": status("VmHWM") - before, "loaded_bytes": before, "seconds": seconds, "loss": loss}


def measure_in_turn(variants: Mapping[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, list[float]], Any]:
    """Return the seconds of some functions by round, called in turn after a rehearsal, and their last results."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    results: dict[str, Any] = {}
    for _ in range(rounds + 1):
        for name, variant in variants.items():
            started = time.perf_counter()
            results[name] = variant()
            seconds[name].append(time.perf_counter() - started)
    return {name: times[1:] for name, times in seconds.items()}, results


def run_script(*command: str, **options: Any) -> dict[str, Any]:
    """Run Python in a new process, and return the JSON of the last line that it prints."""
    completed = subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE, text=True, **options)
    return json.loads(completed.stdout.splitlines()[-1])


def measure_in_processes(
    results: Path,
    turns: Mapping[str, int],
    variants: Sequence[str],
    measure: Callable[..., dict[str, float]],
    summarize: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    """Measure what a results file lacks, each measurement in a new process of this script; write the file after each.

    Args:
        results: Path of the results file.
        turns: Number of measurements of each variant by case.
        variants: Variants, which take turns.
        measure: Function that measures in the new process; it gets the words of the case and the variant.
        summarize: Function from the measurements by key (case, variant, turn) to the summary.
    """
    if len(sys.argv) > 1:
        print(json.dumps(measure(*sys.argv[1:])))
        return
    measurements: dict[str, Any] = json.loads(results.read_text())["cells"] if results.exists() else {}
    for case in turns:
        for turn, variant in product(range(turns[case]), variants):
            if (key := f"{case} {variant} {turn}") not in measurements:
                measurements[key] = run_script(sys.argv[0], *case.split(), variant)
                record = {"cells": measurements, "summary": summarize(measurements), "provenance": provenance()}
                write_json(results, record)
                print(key, measurements[key], flush=True)
    print(json.dumps(summarize(measurements), indent=1))


def medians(measurements: Mapping[str, dict[str, float]], name: str) -> dict[str, float]:
    """Return the median of each field of the measurements whose keys begin with a name; empty without any."""
    rows = [row for key, row in measurements.items() if key.startswith(f"{name} ")]
    return {field: median(row[field] for row in rows) for field in rows[0]} if rows else {}


def long_text(tokenizer: Any, length: int, source: str = "stdlib") -> np.ndarray:
    """Return token ids ``(1, length)``: the longest test documents of a source of texts, repeated if necessary."""
    documents = split_documents(load_documents(source))["test"]
    longest_first = cycle(sorted(documents, key=lambda document: -len(document.text)))
    chunks: list[np.ndarray] = []
    while sum(map(len, chunks)) < length:
        chunks.append(np.array(tokenizer(next(longest_first).text)["input_ids"]))
    return np.concatenate(chunks)[None, :length]
