"""Every input that fuzzing (``scripts/fuzz.py``) found a fault with is read again: a result, or an error on purpose."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from pathlib import Path

import pytest

from longrope.errors import LongRopeError

HERE = Path(__file__).parent
SPEC = importlib.util.spec_from_file_location("fuzz_readers", HERE.parents[1] / "scripts" / "fuzz_readers.py")
assert SPEC is not None
assert SPEC.loader is not None
FUZZED = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(FUZZED)
READERS = FUZZED.READERS
FOUND = [pytest.param(path, id=f"{path.parent.name}/{path.name}") for path in sorted((HERE / "corpus").glob("*/*"))]


@pytest.mark.parametrize("found", FOUND)
def test_what_was_found_is_read_or_refused(found: Path, tmp_path: Path) -> None:
    reader = READERS[found.parent.name]
    path = tmp_path / reader.name
    path.write_bytes(found.read_bytes())
    for _ in range(2):  # the first may have modules to import
        begun = time.process_time()
        with contextlib.suppress(LongRopeError):
            reader.read(path)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("name", READERS)
def test_the_seeds_are_read(name: str, tmp_path: Path) -> None:
    """Else the fuzzer would start from files that are refused at once."""
    reader, read = READERS[name], 0
    for seed in reader.seeds():
        (tmp_path / reader.name).write_bytes(seed)
        with contextlib.suppress(LongRopeError):
            reader.read(tmp_path / reader.name)
            read += 1
    assert read >= 0.8 * len(list(reader.seeds()))
