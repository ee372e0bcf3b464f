"""Every input with which fuzzing (``scripts/fuzz.py``) found a fault now gives a result or a LongRopeError."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from pathlib import Path

import pytest

from longrope.errors import LongRopeError

FOLDER = Path(__file__).parent
SPEC = importlib.util.spec_from_file_location("fuzz_readers", FOLDER.parents[1] / "scripts" / "fuzz_readers.py")
assert SPEC is not None
assert SPEC.loader is not None
FUZZED = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(FUZZED)
READERS = FUZZED.READERS
INPUTS = [pytest.param(path, id=f"{path.parent.name}/{path.name}") for path in sorted((FOLDER / "corpus").glob("*/*"))]


@pytest.mark.parametrize("fuzzed", INPUTS)
def test_a_former_finding_is_read_or_refused(fuzzed: Path, tmp_path: Path) -> None:
    reader = READERS[fuzzed.parent.name]
    path = tmp_path / reader.name
    path.write_bytes(fuzzed.read_bytes())
    for _ in range(2):  # the first reading may import modules
        started = time.process_time()
        with contextlib.suppress(LongRopeError):
            reader.read(path)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("name", READERS)
def test_the_seeds_are_read(name: str, tmp_path: Path) -> None:
    """Otherwise the fuzzer would start from files that are refused at once."""
    reader = READERS[name]
    read = 0
    for seed in reader.seeds():
        (tmp_path / reader.name).write_bytes(seed)
        with contextlib.suppress(LongRopeError):
            reader.read(tmp_path / reader.name)
            read += 1
    assert read >= 0.8 * len(list(reader.seeds()))
