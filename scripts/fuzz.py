"""Fuzz the file readers, guided by coverage: any bytes give a result or a LongRopeError, in 2 s and 1 GB.

    python scripts/fuzz.py gguf --seconds 3600      # needs the package atheris
    python scripts/fuzz.py --record                 # adds the new runs in build/fuzz to benchmarks/results/fuzz.json

A finding does not end a run. Its smallest input so far is kept in ``build/fuzz/READER/findings`` with its traceback,
under the name of the error and the line that raised it. Inputs of fixed findings move to ``tests/fuzz/corpus``. Results
hold wall and CPU seconds (user and system, of the process), since wall seconds mean little on a shared machine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fuzz_mutations import mutate_tokens, mutate_words

ROOT = Path(__file__).parents[1]
OUT, RESULTS, CORPUS = (
    ROOT / "build" / "fuzz",
    ROOT / "benchmarks" / "results" / "fuzz.json",
    ROOT / "tests/fuzz/corpus",
)
SLOW, LARGE, LONGEST = 2.0, 1 << 30, 8192
# modules whose lines guide the fuzzer; C code, such as the parser of JSON, is not instrumented
WATCHED = ["longrope", "gguf", "tomllib", "transformers.modeling_rope_utils", "transformers.configuration_utils"]


def main() -> None:
    """Fuzz one reader, or write the results of all runs."""
    parser = argparse.ArgumentParser(description="Fuzz the file readers, or record the results.")
    parser.add_argument("reader", nargs="?", help="json, csv, config, gguf, jsonl, plan or lines")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    if args.record:
        record()
    else:
        fuzz(args.reader, args.seconds)


def fuzz(name: str, seconds: float) -> None:
    """Run libFuzzer for the given time and end the process."""
    atheris: Any = importlib.import_module("atheris")  # an optional tool

    with atheris.instrument_imports(include=WATCHED, enable_loader_override=False):
        from fuzz_readers import READERS, LongRopeError
    import transformers

    transformers.logging.set_verbosity_error()
    reader, folder = READERS[name], OUT / name
    corpus, findings = folder / "corpus", folder / "findings"
    for subfolder in (corpus, findings):
        subfolder.mkdir(parents=True, exist_ok=True)
    for seed in [*reader.seeds(), *(path.read_bytes() for path in CORPUS.glob(f"{name}/*"))]:
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    path = Path(tempfile.mkdtemp()) / reader.name
    for seed in reader.seeds():  # imports of the first file are not part of its reading time
        path.write_bytes(seed)
        with contextlib.suppress(LongRopeError):
            reader.read(path)
    started, count, saved, peak = time.time(), 0, 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit = _memory() + 4 * LARGE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("error")

    def read_once(data: bytes) -> None:
        nonlocal count, saved, peak
        path.write_bytes(data)
        start = time.process_time()
        try:
            reader.read(path)
        except LongRopeError:
            pass
        except Exception as error:  # a finding
            _keep(findings, _location(error), data, traceback.format_exc())
        taken, used = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if taken > SLOW:
            _keep(findings, "slow", data, f"{taken:.1f} s\n")
        if (used - peak) * 1024 > LARGE:
            _keep(findings, "large", data, f"{(used - peak) / 2**20:.1f} GB\n")
        count, peak = count + 1, max(peak, used)
        if time.time() - saved > 10 or time.time() - started > seconds:
            saved = time.time()
            run = {
                "executions": count,
                "seconds": saved - started,
                "cpu_seconds": time.process_time(),
                "begun": started,
            }
            (folder / f"run-{os.getpid()}-{int(started)}.json").write_text(json.dumps(run))
        if saved - started > seconds:
            os._exit(0)

    limits = [f"-max_len={LONGEST}", "-timeout=300", "-rss_limit_mb=0", f"-artifact_prefix={findings}/"]
    mutator = mutate_words if name == "gguf" else mutate_tokens
    atheris.Setup([sys.argv[0], str(corpus), *limits], read_once, custom_mutator=lambda *a: mutator(atheris.Mutate, *a))
    atheris.Fuzz()


def _keep(folder: Path, name: str, data: bytes, reason: str) -> None:
    path = folder / name
    if not path.exists() or len(data) < path.stat().st_size:
        path.write_bytes(data)
        path.with_name(f"{name}.txt").write_text(reason)


def _location(error: BaseException) -> str:
    """Return the type of an error, the innermost line of longrope and the innermost line of all."""
    frames = traceback.extract_tb(error.__traceback__)
    longrope_frames = [frame for frame in frames if "longrope" in frame.filename] or frames
    places = {f"{Path(frame.filename).stem}-{frame.lineno}": None for frame in (longrope_frames[-1], frames[-1])}
    return "-".join([type(error).__name__, *places])


def _memory() -> int:
    """Return the bytes of address space in use."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def record() -> None:
    """Add the runs of each reader that the results do not count yet, and list its fixed and open findings."""
    from longrope.provenance import provenance
    from longrope.storage.atomic import write_json

    readers = json.loads(RESULTS.read_text("utf-8"))["readers"] if RESULTS.exists() else {}
    for folder in sorted(path for path in OUT.iterdir() if path.is_dir()):
        paths = [*folder.glob("run-*.json")]
        runs = [json.loads(path.read_text()) for path in paths]
        before = readers.get(folder.name, {})
        total = {
            name: before.get(name, 0) + sum(run[name] for run in runs)
            for name in ("executions", "seconds", "cpu_seconds")
        }
        fixed = sorted(path.name for path in CORPUS.glob(f"{folder.name}/*"))
        open_findings = sorted(path.name for path in (folder / "findings").iterdir() if path.suffix != ".txt")
        counts = {**total, "runs": before.get("runs", 0) + len(runs)}
        readers[folder.name] = {**counts, "fixed": fixed, "open": open_findings}
        for path in paths:
            path.rename(path.with_name(f"recorded-{path.name}"))
    tools = {"atheris": version("atheris"), "gguf": version("gguf")}
    write_json(RESULTS, {"readers": readers, **tools, "provenance": provenance()})


if __name__ == "__main__":
    main()
